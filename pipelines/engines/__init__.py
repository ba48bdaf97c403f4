"""Beam engines: choose one by name, start it, check after the run that it was the one that ran."""
