"""Verification: recompute all served values from the raw files, and compare them bit for bit."""
