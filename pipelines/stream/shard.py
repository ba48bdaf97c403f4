"""Shard: polls to one element per (view, shard), prepared for the kernel. Wiring only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam

from tidemill.features.definitions import Project
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.io.poll import Poll, request_parts, shard_poll
from tidemill.pipelines.stream.featurize import ALL_REQUESTS, operator_key
from tidemill.pipelines.stream.wire_format import encode_part


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(tuple[str, bytes])
class _Shard(beam.DoFn):
    def __init__(self, project: Project, shards: int) -> None:
        self._project = project
        self._shards = shards

    def setup(self) -> None:
        self._plans = {view.name: make_plan(view) for view in self._project.views}

    def process(self, element: bytes) -> Iterator[tuple[str, bytes]]:
        poll = Poll.decode(element)
        for part in request_parts(self._project, poll):
            yield ALL_REQUESTS, encode_part(part)
        for view, shard, data in shard_poll(self._project, self._plans, self._shards, poll):
            yield operator_key(self._project, view, shard, self._shards), data


@dataclass(eq=False)
class Shard(beam.PTransform):
    """Encoded polls to what `pipelines.stream.featurize.Featurize` takes.

    Output: one element for each (view, shard), at its operator's key, and the requests of each
    partition, at the key `ALL_REQUESTS`.

    Attributes:
        project: The project.
        shards: How many shards each view has.
    """

    project: Project
    shards: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, polls: beam.PCollection) -> beam.PCollection:
        """Wire the stage."""
        return polls | "Shard" >> beam.ParDo(_Shard(self.project, self.shards))


def is_request(element: tuple[str, bytes]) -> bool:
    """Tell whether an element holds requests, and not batches of an operator."""
    return element[0] == ALL_REQUESTS


def is_batches(element: tuple[str, bytes]) -> bool:
    """Tell whether an element holds batches of an operator."""
    return element[0] != ALL_REQUESTS
