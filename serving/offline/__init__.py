"""The offline store: every change point of every feature, on disk or in BigQuery.

The log only grows, `merge` makes few files of many, and `join` reads it as of an instant.
"""
