"""The operators with which a stream begins, made in batch from the log."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.log import Log, declared_columns
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.log_parts import (
    parts_before,
    source_partitions,
    stream_log,
    watermarks_at,
)
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.sequence import decode_batches, without_requests
from tidemill.pipelines.stream.shard import shard_poll


class Beginning(NamedTuple):
    """Where a stream begins.

    Attributes:
        positions: Source to the position of each partition: lower rows are in the states.
        operators: Every operator, one at a time, by view and shard.
    """

    positions: dict[str, list[int]]
    operators: Iterator[ShardOperator]


def find_beginning(
    config: Configuration, build: Path, as_of_us: int, views: Collection[str] | None = None
) -> Beginning:
    """Make the operators of all rows that were received before an instant.

    Args:
        config: The configuration.
        build: The folder with the log.
        as_of_us: The instant.
        views: The views whose operators are made; None for all.
    """
    project = config.project
    log = Log(build, declared=declared_columns(project))
    partitions = source_partitions(log, project)
    # The build has the rows, the live log what was known of its topics.
    watermarks = watermarks_at(stream_log(config.current, config.project), project, as_of_us)
    parts, positions = parts_before(log, project, partitions, as_of_us, watermarks=watermarks)
    options = FeaturizeOptions(
        run="handoff", shards=config.shards, partitions=partitions, publish=False
    )

    def operators() -> Iterator[ShardOperator]:
        plans = {view.name: make_plan(view) for view in project.views}
        poll = Poll(1, 0, tuple(parts))
        for view, shard, data in shard_poll(project, plans, config.shards, poll, views):
            key = operator_key(project, view, shard, config.shards)
            operator = make_operator(project, key, options)
            operator.receive(without_requests(decode_batches(data, operator.event_schema)))
            operator.begin()
            yield operator

    return Beginning(positions, operators())
