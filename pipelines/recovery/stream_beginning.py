"""The states that a stream began with, made again from the log.

A stream begins with the states of a build, or it goes on with a stream of another version of the
project (`pipelines.recovery.upgrade_record`). Then views that were kept go on with the states that
they had, which are made by repeating the stream before, and it may have begun in the same way. The
states of all other views are made from the log up to the same poll. Neither needs a file of states.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tidemill.features.contract import TIME_MAX, Int64Array
from tidemill.features.definitions import EventStream, Request
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.tiles.state import Counters
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.recovery.beginning import find_beginning
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.log_parts import source_partitions, stream_log, watermarks_at
from tidemill.pipelines.recovery.repeat import Repeat
from tidemill.pipelines.recovery.stream_polls import stream_polls
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.joiner_upgrade import asked_of, releases_named
from tidemill.pipelines.stream.joiners import Joiners
from tidemill.pipelines.stream.operator import OperatorCounters, ShardOperator
from tidemill.pipelines.stream.sequence import decode_batches
from tidemill.pipelines.stream.shard import shard_poll
from tidemill.pipelines.stream.state_files import handed_over
from tidemill.pipelines.stream.waiting_rows import WaitingRows

Release = tuple[int, tuple[int, ...]]
"""The frontier of a release, and the next position of each partition of events and requests."""


@dataclass
class Beginning:
    """The states that a stream began with.

    Attributes:
        operators: The operators, by view and shard.
        joiners: The stage that joins their answers.
        releases: The releases of the stream before that answers in `joiners` name, by view, shard
            and number, and the releases before these.
    """

    operators: dict[tuple[str, int], ShardOperator]
    joiners: Joiners
    releases: dict[tuple[str, int, int], Release] = field(default_factory=dict)


def empty_joiners(config: Configuration, joiners: int, *, apart: bool) -> Joiners:
    """Return joiners that have taken nothing.

    Args:
        config: The configuration.
        joiners: How many there are.
        apart: Whether a request is answered when it can be (`StreamRun.apart`).
    """
    within_us = config.stream.answer_within_us
    return Joiners.empty(config.project, config.shards, within_us, joiners, apart=apart)


def carried_joiners(config: Configuration, run: StreamRun) -> Joiners:
    """Return the joiners with which a stream began.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.

    Raises:
        StateError: Their states are damaged, or of other definitions.
    """
    joiners = empty_joiners(config, run.joiners, apart=run.apart)
    joiners.read(config.current.stream_folder / paths.CARRIED)
    return joiners


def stream_beginning(config: Configuration, run: StreamRun) -> Beginning:
    """Make the states that a stream began with.

    Args:
        config: The configuration, with the folders of the stream; its definitions are those of the
            stream.
        run: The record of the stream.

    Raises:
        StateError: A record cannot be read.
    """
    views = [view.name for view in config.project.views]
    upgrade = UpgradeRecord.of(run, config.current.stream_folder)
    if upgrade is None:
        empty = empty_joiners(config, run.joiners, apart=run.apart)
        return Beginning(_operators(config, run, None, views), empty)
    joiners = carried_joiners(config, run)
    named = releases_named(joiners)
    releases = dict.fromkeys([*named, *((view, shard, n - 1) for view, shard, n in named)])
    operators = _operators(config, run, upgrade, views, releases)
    ask_again(config, joiners, operators.values())
    known = {place: found for place, found in releases.items() if found is not None}
    return Beginning(operators, joiners, known)


def repeat_stream(config: Configuration, run: StreamRun) -> tuple[Repeat, Beginning]:
    """Return a stream that takes its polls again, from states that are made anew from the log.

    Arguments and errors as for `stream_beginning`.
    """
    begun = stream_beginning(config, run)
    states = {place: handed_over(operator) for place, operator in begun.operators.items()}
    repeat = Repeat(config, run, states, as_of_us=run.as_of_us, last_poll=run.polls)
    repeat.joiners = begun.joiners
    return repeat, begun


def ask_again(config: Configuration, joiners: Joiners, operators: Iterable[ShardOperator]) -> None:
    """Let operators wait for the frontier with exactly the requests that they have yet to answer.

    Args:
        config: The configuration.
        joiners: The joiners, which hold the requests.
        operators: The operators; changed in place.
    """
    by_place = {(one.key.view, one.key.shard): one for one in operators}
    for operator in by_place.values():
        operator.requests = WaitingRows()
    for name in dict.fromkeys(view for view, _ in by_place):
        for shard, rows in asked_of(joiners, config.project.view(name), config.shards):
            by_place[name, shard].requests.add(rows)


def begins_anew(operator: ShardOperator) -> None:
    """Let the counters of an operator begin anew: they count since the stream began."""
    operator.counters = OperatorCounters()
    operator.state.counters = Counters()


def _operators(
    config: Configuration,
    run: StreamRun,
    upgrade: UpgradeRecord | None,
    views: Collection[str],
    releases: dict[tuple[str, int, int], Release | None] | None = None,
) -> dict[tuple[str, int], ShardOperator]:
    """Make the operators of some views as a stream began with them.

    Args:
        config: The configuration, with the shards of the stream.
        run: The record of the stream.
        upgrade: How it began.
        views: The views.
        releases: Takes those of the stream before that it has keys for.
    """
    if upgrade is None:
        begin = find_beginning(config, config.current.build_folder, run.as_of_us, views)
        return {(one.key.view, one.key.shard): one for one in begin.operators}
    carried = [view for view in views if view in upgrade.carried]
    kept = [view for view in carried if view in upgrade.kept(run)]
    made: dict[tuple[str, int], ShardOperator] = {}
    if kept or (carried and releases):
        before = replace(config, shards=upgrade.run.shards or config.shards)
        began = _operators(before, upgrade.run, upgrade.before, carried)
        states = {place: handed_over(operator) for place, operator in began.items()}
        repeat = Repeat(
            before,
            upgrade.run,
            states,
            as_of_us=upgrade.run.as_of_us,
            last_poll=upgrade.run.polls,
            publishes=False,
        )
        for part in repeat.polls(run.polls, {run.polls}):
            for operator, release in part.releases:
                place = operator.key.view, operator.key.shard, release.number
                if releases is not None and place in releases:
                    releases[place] = release.frontier_us, release.positions
        made = {place: one for place, one in repeat.operators.items() if place[0] in kept}
        for operator in made.values():
            begins_anew(operator)
    rebuilt = [view for view in views if view not in kept]
    if rebuilt:
        known = watermarks_after(config, upgrade.run, upgrade.before, run.polls)
        for operator in operators_at(
            config, run.positions, known, dict.fromkeys(rebuilt, upgrade.floor_us)
        ):
            begin_at(operator, run.polls)
            made[operator.key.view, operator.key.shard] = operator
    return made


def begin_at(operator: ShardOperator, polls: int) -> None:
    """Make a state that was made from the log the beginning of a stream, after some polls."""
    operator.begin()
    operator.number = operator.moved = polls


def operators_at(
    config: Configuration,
    positions: Mapping[str, Sequence[int]],
    watermarks: Mapping[str, Sequence[int]],
    floors: Mapping[str, int],
) -> Iterator[ShardOperator]:
    """Make the operators of views from all rows of the log up to some positions, one at a time.

    Args:
        config: The configuration.
        positions: Source to the position in each partition.
        watermarks: Source to the watermark of each partition there.
        floors: View to the instant beyond which its frontier does not go.
    """
    project, log = config.project, stream_log(config.current, config.project)
    options = made_options(config, log)
    plans = {name: make_plan(project.view(name)) for name in floors}
    for name, floor_us in floors.items():
        view = project.view(name)
        parts = [
            *_parts(log, view.stream, positions, watermarks, floor_us),
            *_parts(log, project.request, positions, watermarks, floor_us, has_rows=False),
        ]
        poll, _ = validated_poll(project, Poll(1, 0, tuple(parts)))
        for index, shard, data in shard_poll(project, plans, config.shards, poll, [name]):
            key = operator_key(project, index, shard, config.shards)
            operator = make_operator(project, key, options)
            operator.receive(decode_batches(data, operator.event_schema))
            yield operator


def made_options(config: Configuration, log: Log) -> FeaturizeOptions:
    """Return the options of operators whose states are made from the log."""
    partitions = source_partitions(log, config.project)
    return FeaturizeOptions("upgrade", shards=config.shards, partitions=partitions, publish=False)


def _parts(
    log: Log,
    definition: EventStream | Request,
    positions: Mapping[str, Sequence[int]],
    watermarks: Mapping[str, Sequence[int]],
    floor_us: int,
    *,
    has_rows: bool = True,
) -> Iterator[PollPart]:
    name = definition.name
    for partition, stop in enumerate(positions[name]):
        watermark = min(watermarks[name][partition], floor_us)
        yield part_between(log, name, partition, 0, stop, watermark, has_rows=has_rows)


def part_between(
    log: Log,
    name: str,
    partition: int,
    start: int,
    stop: int,
    watermark_us: int,
    *,
    has_rows: bool = True,
) -> PollPart:
    """Return the rows of a partition between two positions as a part of a poll."""
    rows = None
    if has_rows and stop > start:
        rows = log.read_span(name, partition, start, stop)
    return PollPart(name, partition, start, stop, watermark_us, rows)


def watermarks_after(
    config: Configuration, run: StreamRun, upgrade: UpgradeRecord | None, polls: int
) -> dict[str, list[int]]:
    """Return the watermark of each partition that a stream knew after one of its polls.

    Args:
        config: The configuration, with the log of the stream.
        run: The record of the stream.
        upgrade: How it began.
        polls: The number of the poll.
    """
    log, project = stream_log(config.current, config.project), config.project
    if upgrade is None:
        known = watermarks_at(log, project, run.as_of_us)
    else:
        known = watermarks_after(config, upgrade.run, upgrade.before, run.polls)
    found = {name: np.array(of_source, np.int64) for name, of_source in known.items()}
    if config.is_live:
        _take_live(config, run, polls, found)
    else:
        source = stream_polls(config, run, as_of_us=run.as_of_us, last_poll=run.polls)
        at = source.start
        while at.number < polls:
            taken = source.next_poll(at, source.due_us(0.0), 0)
            if taken is None:
                break
            poll, at = taken
            for part in poll.parts:
                of_source = found[part.source]
                of_source[part.partition] = max(of_source[part.partition], part.watermark_us)
    return {name: of_source.tolist() for name, of_source in found.items()}


def _take_live(
    config: Configuration, run: StreamRun, polls: int, found: Mapping[str, Int64Array]
) -> None:
    """Raise watermarks to those of the sealed polls of a live stream, up to one."""
    live = LiveLog(config.current.folder / LIVE, config.project)
    before = live.cuts_before(run.as_of_us)
    first = 0 if before is None else int(before.number[-1])
    if polls <= run.polls:
        return
    cuts, topics = live.cuts_between(first, first + polls - run.polls), live.topics()
    for name, known in found.items():
        topic = topics.get(name)
        of_files = len(known) if topic is None else topic.first
        known[:of_files] = TIME_MAX  # files have ended
        if topic is not None:
            newest = cuts.watermarks[name][:, : len(known) - of_files].max(axis=0)
            known[of_files:] = np.maximum(known[of_files:], newest)
