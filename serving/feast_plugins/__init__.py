"""What Feast loads by class path (`serving.stores.class_paths`): nothing is imported from here.

These paths stand in users' feature_store.yaml files: they are public, and they stay.
"""
