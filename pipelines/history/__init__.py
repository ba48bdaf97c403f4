"""Batch over history: the training table, the states for the stream, the offline log."""
