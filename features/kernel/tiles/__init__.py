"""Entities, their tiles, and the memory that both live in.

A tile is the partial aggregate of one entity over one hop. Only non-empty tiles exist.
The order in which events came never shows in a tile.
"""
