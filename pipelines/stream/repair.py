"""The whole shard as a repair of the online store.

It is sent if the store has lost writes of it, and once if a killed run had published beyond the
state from which this run started.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.wire_format import pack_everything


def pack_repair(
    operator: ShardOperator,
    releases: Sequence[Release],
    shown_us: int | None,
    has_lost_writes: bool,
) -> list[bytes]:
    """Encode what repairs the online store after some releases; nothing if no repair is due.

    Args:
        operator: The operator, after the releases.
        releases: Its last releases, in order; at least one.
        shown_us: The store's frontier when the run began, if it was past the state's; else None.
        has_lost_writes: Whether the store has lost writes of the shard.
    """
    if not has_lost_writes and (shown_us is None or not _pass(releases, shown_us)):
        return []
    caught_up = shown_us is not None and shown_us <= releases[-1].frontier_us
    return [pack_everything(operator, shown_us if caught_up else None)]


def _pass(releases: Sequence[Release], shown_us: int) -> bool:
    """Tell whether one of them is the first to reach the frontier that the store had already."""
    since = releases[0].since_us
    return (since is None or since < shown_us) and shown_us <= releases[-1].frontier_us
