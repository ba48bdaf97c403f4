"""Entities, their tiles, and the memory of both.

A tile is the partial aggregate of one entity over one hop. Only non-empty tiles exist. A tile does
not depend on the order in which its events came.
"""
