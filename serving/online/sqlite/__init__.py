"""The online database in an SQLite file."""
