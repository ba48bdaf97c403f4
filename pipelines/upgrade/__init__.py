"""Upgrades of a stream to another version of its project, which keep the states of its views.

Views whose definition and shards are the same keep state, rows in stores and position; the others
are made from history beside the stream that runs, and the stream then goes on with both.
"""
