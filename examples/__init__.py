"""Example projects, each a Python package and a YAML file."""
