"""What answers: the stores of features, their registration with Feast, and bundles of models.

Imports go one way between the packages here (import-linter): feast_plugins, then registry, then
online, offline and bundles, which know nothing of each other, then stores, then files.
"""
