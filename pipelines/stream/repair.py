"""What a release sends to the online store: its publications, or the whole shard to repair it.

The whole shard is sent where the store has lost writes of it, and once where a run that was killed
had published past the state that this run began with.
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
    """Pack what a release sends to the online store.

    Args:
        view: The view's place in the project.
        operator: The operator, after the release.
        release: The release.
        shown_us: The frontier that the store showed when the run began; None where it is the
            state's.
        has_lost_writes: Whether the store has lost writes of the shard.
    """
    key = operator.key
    packed = [pack_publications(view, key.shard, release, key.text)]
    if has_lost_writes or (shown_us is not None and _passes(release, shown_us)):
        caught_up = shown_us is not None and shown_us <= release.frontier_us
        packed.append(pack_everything(view, operator, shown_us if caught_up else None))
    return packed


def _passes(release: Release, shown_us: int) -> bool:
    """Tell whether a release is the one that reaches what the online store shows already."""
    since = release.since_us
    return (since is None or since < shown_us) and shown_us <= release.frontier_us
