"""States brought forward to the last releases of a stream, by repeating its polls.

A stream's state lies in the engine. What it has released can be made again from the states that it
began with, or from those of a savepoint, and the polls after them (`pipelines.recovery.repeat`). So
the rows are those that the stream published, byte for byte, also after late events. The marks of
the releases prove it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tidemill.features.errors import StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun
from tidemill.pipelines.recovery.later_states import publishing_options
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.repeat import Repeat
from tidemill.pipelines.stream.featurize_options import make_operator, operator_key
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.state_files import handed_over, read_handoff


def releases_by_shard(stream: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the entries of a stream's release log, by view and shard, sorted by number."""
    out: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for entry in read_releases(stream):
        out[entry["view"], entry["shard"]].append(entry)
    return out


def released_operators(
    config: Configuration,
    folder: Path,
    handoff: Handoff,
    releases: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    views: Collection[str],
) -> Iterator[ShardOperator]:
    """Make the operators of views as of the last of their releases.

    Args:
        config: The configuration, with the folders of the stream.
        folder: The states to begin with.
        handoff: Their record.
        releases: By view and shard: the releases of the stream.
        views: The views.

    Raises:
        StateMismatch: The polls do not give the last releases.
    """
    project, options = config.project, publishing_options(config)
    last: dict[tuple[str, int], Mapping[str, Any]] = {}
    states: dict[tuple[str, int], bytes] = {}
    for index, view in enumerate(project.views):
        for shard in range(config.shards if view.name in views else 0):
            key = operator_key(project, index, shard, config.shards)
            operator = make_operator(project, key, options)
            read_handoff(folder, operator)
            place = view.name, shard
            later = [one for one in releases.get(place, ()) if one["number"] > operator.number]
            if later:
                last[place] = later[-1]
                states[place] = handed_over(operator)
            else:
                yield operator
    if last:
        yield from _repeated(config, handoff, states, last, releases)


def _repeated(
    config: Configuration,
    handoff: Handoff,
    states: Mapping[tuple[str, int], bytes],
    last: Mapping[tuple[str, int], Mapping[str, Any]],
    releases: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
) -> Iterator[ShardOperator]:
    run = StreamRun.read(config.current.stream_folder)
    assert run is not None, "releases are of a stream that has a record"
    repeat = Repeat(
        config,
        run,
        states,
        as_of_us=handoff.as_of_us,
        last_poll=handoff.polls,
        publishes=False,
    )
    if config.is_live:
        # A stream that runs or was killed has released polls that no savepoint has sealed yet.
        sealed = {
            place: [
                one for one in releases[place] if handoff.polls < one["number"] <= repeat.last_poll
            ]
            for place in last
        }
        yield from (repeat.operators[place] for place, entries in sealed.items() if not entries)
        last = {place: entries[-1] for place, entries in sealed.items() if entries}
        if not last:
            return
    stops = {int(entry["number"]) for entry in last.values()}
    waiting = dict(last)
    for part in repeat.polls(max(stops), stops):
        for place, entry in last.items():
            if place in waiting and entry["number"] == part.last_poll:
                operator = repeat.operators[place]
                if operator.mark.hex() != entry["mark"]:
                    raise _other_polls(config, waiting)
                del waiting[place]
                yield operator
    if waiting:
        raise _other_polls(config, waiting)


def _other_polls(
    config: Configuration, waiting: Mapping[tuple[str, int], Mapping[str, Any]]
) -> StateMismatch:
    (view, shard), entry = next(iter(waiting.items()))
    return StateMismatch(
        f"the release log in {config.current.stream_folder} has release {entry['number']} of view "
        f"{view!r}, shard {shard}, and the polls of the log give another one, so it is unknown "
        "what was published: `tidemill verify` says where they differ; run `tidemill stream` again"
    )
