"""The online database in Redis."""
