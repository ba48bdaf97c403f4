"""The report of a run: one html file."""
