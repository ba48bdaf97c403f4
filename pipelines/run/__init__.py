"""Progress, figures and records of a run, and the names of its files."""
