"""What moves data: engines, transforms, connectors, training, verification, command line."""
