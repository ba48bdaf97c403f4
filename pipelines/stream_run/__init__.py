"""A run of the stream, from its start to the account of everything that went in."""
