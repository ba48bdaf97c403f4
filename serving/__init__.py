"""Serving: the feature stores, their registration with Feast, and bundles of models.

A package imports only packages after it in this list: feast_plugins; registry; online, offline and
bundles (which do not import each other); stores; files.
"""
