"""What a release sends to the online store: its publications and, as a repair, the whole shard.

The whole shard is sent if the store has lost writes of it. It is also sent once if a killed run had
published beyond the state from which this run started.
"""

from __future__ import annotations

from tidemill.pipelines.stream.operator import Release, ShardOperator
from tidemill.pipelines.stream.wire_format import pack_everything, pack_publications


def pack_release(
    view: int,
    operator: ShardOperator,
    release: Release,
    shown_us: int | None,
    has_lost_writes: bool,
) -> list[bytes]:
    """Encode what a release sends to the online store.

    Args:
        view: The view's index in the project.
        operator: The operator, after the release.
        release: The release.
        shown_us: The store's frontier when the run began, if it was past the state's; else None.
        has_lost_writes: Whether the store has lost writes of the shard.
    """
    key = operator.key
    packed = [pack_publications(view, key.shard, release, key.text)]
    if has_lost_writes or (shown_us is not None and _passes(release, shown_us)):
        caught_up = shown_us is not None and shown_us <= release.frontier_us
        packed.append(pack_everything(view, operator, shown_us if caught_up else None))
    return packed


def _passes(release: Release, shown_us: int) -> bool:
    """Tell whether a release is the first to reach the frontier that the store had already."""
    since = release.since_us
    return (since is None or since < shown_us) and shown_us <= release.frontier_us
