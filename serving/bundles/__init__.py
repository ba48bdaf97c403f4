"""Bundles: transform graph, model and manifest in one directory, and the engine that calls them.

A bundle with other bytes, or trained for other definitions, is refused by name.
"""
