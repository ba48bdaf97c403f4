"""Serving: the feature stores, their registration with Feast, and bundles of models.

Imports go one way between the packages (import-linter): feast_plugins, then registry, then online,
offline and bundles (independent of each other), then stores, then files.
"""
