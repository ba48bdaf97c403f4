"""The names of the facts that a stream's processes note for `tidemill status`."""

from __future__ import annotations


def source_fact(source: str, partition: int) -> str:
    """Return the name of the fact about a partition of a source's topic."""
    return f"source/{source}/{partition}"


def view_fact(view: str, shard: int) -> str:
    """Return the name of the fact about a shard of a view."""
    return f"view/{view}/{shard}"
