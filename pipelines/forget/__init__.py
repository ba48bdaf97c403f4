"""Forgetting: an entity is deleted everywhere on request, and a record says that it was.

`pipelines.forget.forget` says what is deleted, in which order, and what a kill leaves.
"""
