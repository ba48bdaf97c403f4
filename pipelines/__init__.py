"""What moves data: Beam transforms, connectors, training, verification, the command line."""
