"""The stages of the stream, and the plain objects that decide in them.

`operator` (one view and shard) and `answer_join` decide; `featurize`, `shard` and `infer` wire.
Every row counts exactly once in state on any engine that delivers at least once.
"""
