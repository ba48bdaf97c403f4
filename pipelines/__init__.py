"""Beam transforms, connectors, training, verification and the command line."""
