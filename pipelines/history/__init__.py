"""Batch over history: the training table, the handed-over states, the offline log."""
