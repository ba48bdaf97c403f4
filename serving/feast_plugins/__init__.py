"""The classes that Feast loads by class path (`serving.stores.class_paths`).

These paths are in users' feature_store.yaml files: they are public, and they stay.
"""
