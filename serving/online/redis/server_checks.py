"""What a Redis says of itself (``INFO``): whether it may hold key spaces, and another fill."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Final

from tidemill.features.errors import StoreError
from tidemill.serving.online.cells import cells_width
from tidemill.serving.online.fills import NewFill
from tidemill.serving.online.redis.errors import IN_CLUSTER
from tidemill.serving.online.refusals import no_room

_ROW_BYTES: Final = 170
"""About what a row takes in Redis beside its cells: its header, its key, and Redis's own."""

Info = Mapping[str, str] | None
"""The fields of ``INFO``; None if the user may not ask for them."""


def bytes_needed(fills: Sequence[NewFill]) -> int:
    """Return about how many bytes the expected rows of fills take."""
    return sum(
        new.expected_rows * (cells_width(len(new.space.columns)) + _ROW_BYTES) for new in fills
    )


def check_room(store: str, fills: Sequence[NewFill], info: Info) -> None:
    """Check that there is room for fills.

    Raises:
        StoreFull: There is not.
    """
    limit = int((info or {}).get("maxmemory", 0))
    if not info or not limit:
        return
    needed, free = bytes_needed(fills), limit - int(info["used_memory"])
    if needed > free:
        raise no_room(store, fills, needed, free, f"its maxmemory of {limit:,} bytes")


def check_server(store: str, info: Info) -> None:
    """Check that a Redis does not evict rows, and is no node of a cluster.

    Raises:
        StoreError: It does, or is.
    """
    if info is None:
        warnings.warn(
            f"{store}: the user may not ask for INFO, so whether Redis may evict rows is "
            "not known: let its maxmemory-policy be noeviction",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    policy = info.get("maxmemory_policy", "")
    if policy.startswith("allkeys"):
        raise StoreError(
            f"{store}: its maxmemory-policy is {policy}, so Redis may evict rows, whose "
            "entities would read as never seen; set it to noeviction (CONFIG SET "
            "maxmemory-policy noeviction, and in redis.conf)"
        )
    if info.get("cluster_enabled") == "1":
        raise StoreError(f"{store}: {IN_CLUSTER}")
