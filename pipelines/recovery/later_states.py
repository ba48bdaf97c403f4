"""States brought forward in batch, from where a stream begins to what readers see.

The states of a backfill end where the stream begins. Readers of the online store may have been
shown a later instant already: by a stream of a history that was corrected since. Readers never go
back, so a backfill that publishes, or a republication without a stream, applies the rows after the
states too, all at once, until no frontier is behind what readers see. The values at a frontier are
those that a stream would have published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import FeatureView
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.handoff import Handoff, read_record
from tidemill.pipelines.recovery.log_parts import (
    instant_reaching,
    parts_before,
    source_partitions,
    stream_log,
    watermarks_at,
)
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.sequence import decode_batches, without_requests
from tidemill.pipelines.stream.shard import shard_poll
from tidemill.pipelines.stream.state_files import read_handoff


class Later(NamedTuple):
    """Where states are brought forward to.

    Attributes:
        as_of_us: All rows received before this instant are applied.
        watermark_us: No watermark is lower: the end of a stream that readers have been shown.
    """

    as_of_us: int
    watermark_us: int


def find_later(
    config: Configuration,
    handoff: Handoff,
    views: Collection[str],
    shown: Mapping[tuple[str, int], int],
) -> Later | None:
    """Find the earliest instant at which no frontier is behind what readers see.

    A frontier is the least watermark of its inputs. Once all rows received before an instant are
    read, that of a file is that instant less the source's ``out_of_orderness``, or later; that of
    a topic is what the reader knew (`pipelines.recovery.log_parts.watermarks_at`).

    Args:
        config: The configuration.
        handoff: The record of the states.
        views: The views to publish.
        shown: By view and shard (of any number of shards): the frontier that readers see.

    Returns:
        The instant; None if the states are not behind.
    """
    project = config.project
    ahead = {}
    for view in project.views:
        frontiers = [at for (name, _), at in shown.items() if name == view.name]
        if view.name in views and max(frontiers, default=TIME_MIN) > min(
            handoff.frontiers[view.name]
        ):
            ahead[view] = max(frontiers)
    if not ahead:
        return None
    end_us = config.splits.stream_until_us
    reached = {view.name: frontier for view, frontier in ahead.items()}
    as_of_us = instant_reaching(
        stream_log(config.current, config.project), project, reached, end_us
    )
    if as_of_us is not None:
        return Later(as_of_us, TIME_MIN)
    return Later(end_us, max(ahead.values()))


def published_until(config: Configuration, view: FeatureView, frontier_us: int) -> int:
    """Return the instant before which rows were received that a backfill has published.

    Args:
        config: The configuration.
        view: The view.
        frontier_us: The frontier that was published: that of the states, or of later ones
            (`find_later`).
    """
    states = read_record(config.current.build_folder / paths.STATES)
    if frontier_us == min(states.frontiers.get(view.name, [TIME_MIN])):
        return states.as_of_us
    log, end_us = stream_log(config.current, config.project), config.splits.stream_until_us
    found = instant_reaching(log, config.project, {view.name: frontier_us}, end_us)
    return end_us if found is None else found


def later_operators(
    config: Configuration, folder: Path, later: Later, views: Collection[str]
) -> Iterator[ShardOperator]:
    """Make the operators of views, one at a time, from states and the rows after them.

    Args:
        config: The configuration.
        folder: The states.
        later: Where they are brought forward to.
        views: The views.
    """
    project, log = config.project, stream_log(config.current, config.project)
    handoff, options = read_record(folder), publishing_options(config)
    parts, _ = parts_before(
        log,
        project,
        dict(options.partitions),
        later.as_of_us,
        handoff.positions,
        later.watermark_us,
        watermarks_at(log, project, later.as_of_us),
    )
    poll, _ = validated_poll(project, Poll(handoff.polls + 1, 0, tuple(parts)))
    plans = {view.name: make_plan(view) for view in project.views}
    for view, shard, data in shard_poll(project, plans, config.shards, poll):
        if project.views[view].name in views:
            operator = make_operator(
                project, operator_key(project, view, shard, config.shards), options
            )
            read_handoff(folder, operator)
            operator.receive(without_requests(decode_batches(data, operator.event_schema)))
            yield operator


def publishing_options(config: Configuration) -> FeaturizeOptions:
    """Return the options of operators whose whole shards are published."""
    return FeaturizeOptions(
        run="publish",
        shards=config.shards,
        partitions=source_partitions(stream_log(config.current, config.project), config.project),
        publish=False,
    )
