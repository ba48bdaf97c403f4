"""The classes that Feast loads by class path (`serving.stores.class_paths`).

Users' feature_store.yaml files hold these paths, so a path that was published must keep working.
"""
