"""A run of the stream, from its start to the count of every request that went in."""
