"""Files: written whole or not at all, read back whole or refused by name; segments of a stream."""
