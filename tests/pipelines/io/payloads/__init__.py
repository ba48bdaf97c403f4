"""Tests of the decoders of messages."""
