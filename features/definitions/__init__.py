"""What a user writes down: event streams, entities, feature views, requests, labels, projects.

A definition is frozen and checked when it is made, so a mistake is an error at import time.
Each has a canonical form (`spec`) and a hash of it, which names the key spaces that it fills.
"""
