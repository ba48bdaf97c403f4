"""What Feast loads by class path.

These paths stand in users' feature_store.yaml files: they are public, and they stay.
"""
