"""Shard: polls to one element for each (view, shard), with rows prepared for the kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import concat
from tidemill.features.kernel.hashing import UInt64Array
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.prepare import identity_digests, with_key
from tidemill.pipelines.io.log import POSITION, RECEIVED, SENT
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.stream.answer_parts import RequestPart, group_of
from tidemill.pipelines.stream.featurize_options import operator_key
from tidemill.pipelines.stream.joiner_key import is_joiner_key
from tidemill.pipelines.stream.sequence import (
    SequencedBatch,
    encode_batches,
    event_rows,
    request_rows,
    split_by_shard,
)
from tidemill.pipelines.stream.wire_format import addressed_requests


@beam.typehints.with_input_types(Poll)
@beam.typehints.with_output_types(tuple[str, bytes])
@dataclass(eq=False)
class Shard(beam.DoFn):
    """Turns polls into the input of `pipelines.stream.featurize.Featurize`.

    Output: one element for each (view, shard), with its operator's key; and the requests of each
    partition, with the key of their joiner.

    Attributes:
        project: The project.
        shards: How many shards each view has.
        joiners: How many joiners there are.
    """

    project: Project
    shards: int
    joiners: int = 1

    def setup(self) -> None:
        """Make the plans."""
        self._plans = {view.name: make_plan(view) for view in self.project.views}

    def process(self, element: Poll) -> Iterator[tuple[str, bytes]]:
        """Shard a poll."""
        for part in request_parts(self.project, element):
            yield addressed_requests(part, self.joiners)
        for view, shard, data in shard_poll(self.project, self._plans, self.shards, element):
            yield operator_key(self.project, view, shard, self.shards), data


def is_request(element: tuple[str, bytes]) -> bool:
    """Tell whether an element holds requests."""
    return is_joiner_key(element[0])


def is_batches(element: tuple[str, bytes]) -> bool:
    """Tell whether an element holds batches of an operator."""
    return not is_joiner_key(element[0])


def shard_poll(
    project: Project,
    plans: dict[str, Plan],
    shards: int,
    poll: Poll,
    only: Collection[str] | None = None,
) -> Iterator[tuple[int, int, bytes]]:
    """Turn a poll into one element for each (view, shard).

    The rows of all partitions of a source are prepared together: a call takes about as long for a
    few rows as for one.

    Args:
        project: The project.
        plans: The plan of each view, by name.
        shards: How many shards each view has.
        poll: The poll.
        only: The views that are wanted; None for all.

    Yields:
        The view's index in the project, the shard, and its encoded sequenced batches.
    """
    sources = {
        name: _Source.of(project, [part for part in poll.parts if part.source == name])
        for name in dict.fromkeys(part.source for part in poll.parts)
    }
    for index, view in enumerate(project.views):
        if only is not None and view.name not in only:
            continue
        read = (view.stream.name, project.request.name)
        split = {
            name: source.split(project, view, plans[view.name], shards)
            for name, source in sources.items()
            if name in read
        }
        for shard in range(shards):
            batches = [
                SequencedBatch(
                    poll.number,
                    part.source == project.request.name,
                    part.partition,
                    part.start,
                    part.stop,
                    part.watermark_us,
                    poll.sent_us,
                    split[part.source][part.partition][shard],
                    poll.is_last,
                    poll.epoch,
                    poll.is_marked,
                )
                for part in poll.parts
                if part.source in read
            ]
            yield index, shard, encode_batches(batches)


_Split = dict[int, list[pa.RecordBatch | None]]
"""By partition: its rows of each shard; None where there are none."""


@dataclass(frozen=True)
class _Source:
    """The rows of a source in a poll.

    Attributes:
        parts: The parts of its partitions.
        rows: Their rows, ``(rows,)``, one after the other; None if there are none.
        part: int64, ``(rows,)``: the part of each row.
        digests: uint64, ``(rows, 2)``: the digest of each event; of requests None.
    """

    parts: Sequence[PollPart]
    rows: pa.RecordBatch | None
    part: Int64Array
    digests: UInt64Array | None

    @staticmethod
    def of(project: Project, parts: Sequence[PollPart]) -> _Source:
        rows = concat([part.rows for part in parts if part.rows is not None])
        counts = [0 if part.rows is None else part.rows.num_rows for part in parts]
        digests = None
        if rows is not None and parts[0].source != project.request.name:
            digests = identity_digests(project.stream(parts[0].source), rows)
        return _Source(parts, rows, np.repeat(np.arange(len(parts)), counts), digests)

    def split(self, project: Project, view: FeatureView, plan: Plan, shards: int) -> _Split:
        """Prepare the rows for a view, and split them by partition and shard."""
        found: _Split = {part.partition: [None] * shards for part in self.parts}
        if self.rows is None:
            return found
        positions = hashing.bits(self.rows.column(POSITION))
        received = hashing.bits(self.rows.column(RECEIVED))
        of_part = self.part
        if self.digests is None:
            groups = np.array([group_of(part.partition, part.start) for part in self.parts])
            rows = request_rows(project, view, self.rows, positions, groups[of_part], received)
        else:
            rows = event_rows(plan, view, self.rows, positions, received, self.digests)
            if (mine := with_key(view, self.rows)) is not None:
                of_part = of_part[mine]
        for number, of_shards in split_by_shard(rows, shards, of_part).items():
            found[self.parts[number].partition] = of_shards
        return found


def request_parts(project: Project, poll: Poll) -> Iterator[RequestPart]:
    """Yield the requests of a poll, for the joining stage."""
    for part in poll.parts:
        if part.source == project.request.name and part.rows is not None:
            names = [*project.request.schema, POSITION, RECEIVED]
            sent = pa.array(np.full(part.rows.num_rows, poll.sent_us), pa.int64())
            rows = pa.RecordBatch.from_arrays(
                [*map(part.rows.column, names), sent], names=[*names, SENT]
            )
            yield RequestPart(group_of(part.partition, part.start), rows, poll.epoch)
