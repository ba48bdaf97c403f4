"""Shard: polls to one element for each (view, shard), with rows prepared for the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.prepare import identity_digests
from tidemill.pipelines.io.log import POSITION, RECEIVED, SENT
from tidemill.pipelines.io.poll import Poll
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


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(tuple[str, bytes])
@dataclass(eq=False)
class Shard(beam.DoFn):
    """Turns encoded polls into the input of `pipelines.stream.featurize.Featurize`.

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

    def process(self, element: bytes) -> Iterator[tuple[str, bytes]]:
        """Shard a poll."""
        poll = Poll.decode(element)
        for part in request_parts(self.project, poll):
            yield addressed_requests(part, self.joiners)
        for view, shard, data in shard_poll(self.project, self._plans, self.shards, poll):
            yield operator_key(self.project, view, shard, self.shards), data


def is_request(element: tuple[str, bytes]) -> bool:
    """Tell whether an element holds requests."""
    return is_joiner_key(element[0])


def is_batches(element: tuple[str, bytes]) -> bool:
    """Tell whether an element holds batches of an operator."""
    return not is_joiner_key(element[0])


def shard_poll(
    project: Project, plans: dict[str, Plan], shards: int, poll: Poll
) -> Iterator[tuple[int, int, bytes]]:
    """Turn a poll into one element for each (view, shard).

    Args:
        project: The project.
        plans: The plan of each view, by name.
        shards: How many shards each view has.
        poll: The poll.

    Yields:
        The view's index in the project, the shard, and its encoded sequenced batches.
    """
    digests = {
        (part.source, part.partition): identity_digests(project.stream(part.source), part.rows)
        for part in poll.parts
        if part.rows is not None and part.source != project.request.name
    }
    for index, view in enumerate(project.views):
        batches: list[list[SequencedBatch]] = [[] for _ in range(shards)]
        for part in poll.parts:
            is_request = part.source == project.request.name
            if not is_request and part.source != view.stream.name:
                continue
            split: list[pa.RecordBatch | None] = [None] * shards
            if part.rows is not None:
                positions = hashing.bits(part.rows.column(POSITION))
                received = hashing.bits(part.rows.column(RECEIVED))
                if is_request:
                    groups = np.full(len(positions), group_of(part.partition, part.start))
                    rows = request_rows(project, view, part.rows, positions, groups, received)
                else:
                    rows = event_rows(
                        plans[view.name],
                        view,
                        part.rows,
                        positions,
                        received,
                        digests[part.source, part.partition],
                    )
                split = split_by_shard(rows, shards)
            for shard in range(shards):
                batches[shard].append(
                    SequencedBatch(
                        poll.number,
                        is_request,
                        part.partition,
                        part.start,
                        part.stop,
                        part.watermark_us,
                        poll.sent_us,
                        split[shard],
                        poll.is_last,
                        poll.epoch,
                        poll.is_marked,
                    )
                )
        for shard in range(shards):
            yield index, shard, encode_batches(batches[shard])


def request_parts(project: Project, poll: Poll) -> Iterator[RequestPart]:
    """Yield the requests of a poll, for the joining stage."""
    for part in poll.parts:
        if part.source == project.request.name and part.rows is not None:
            rows = part.rows.select([*project.request.schema, POSITION, RECEIVED])
            sent = pa.repeat(pa.scalar(poll.sent_us, pa.int64()), rows.num_rows)
            group = group_of(part.partition, part.start)
            yield RequestPart(group, rows.append_column(SENT, sent), poll.epoch)
