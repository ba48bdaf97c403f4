"""How a backfill cuts its work: into spans of the log, shards of views, blocks of requests.

A shard of a view is cut into *parts* by the hash of its keys, so that the memory for a part does
not depend on the number of rows. A part holds whole keys: the hash that chooses among
``shards * parts`` also chooses the shard. Requests are numbered through all partitions in order;
the stages name a request by this number.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.pipelines.history.spill import FileHere, Opens, SpillFile
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.log_parts import frontier_of, watermarks_at

SPAN_ROWS: Final = 524_288
"""Rows of a partition that are split at once."""
PART_ROWS: Final = 300_000
"""About how many events, or requests, a part of a shard has."""
BLOCK_REQUESTS: Final = 131_072
"""Requests whose answers are joined at once."""
FILE_BLOCKS: Final = 8
"""Blocks of requests in a file of the training table."""


class Span(NamedTuple):
    """Rows of a partition.

    Attributes:
        source: The source.
        partition: The partition.
        start: The first position.
        stop: The position after the last.
    """

    source: str
    partition: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """A name for a file that is made from these rows."""
        return f"{self.source}-{self.partition:05d}-{self.start:012d}"


@dataclass(frozen=True)
class HistoryPlan:
    """How the work is cut: small, and a JSON value.

    Attributes:
        request: The name of the request.
        build: The folder of the build, with its log.
        spill: The folder of the spill files.
        as_of_us: The instant that the states are as of.
        watermarks: Source to the watermark of each partition at that instant.
        shards: The number of shards of each view.
        lengths: Source to the number of rows of each partition.
        stops: Source to the position of each partition at the instant of the states.
        parts: View to the number of parts of each of its shards.
        label_parts: The number of parts that labels are joined in; 0 without a label.
        span_rows: How many rows of a partition are split at once.
        block_requests: How many requests are joined at once.
        opens: Opens spill files; no part of the JSON.
    """

    request: str
    build: str
    spill: str
    as_of_us: int
    watermarks: Mapping[str, Sequence[int]]
    shards: int
    lengths: Mapping[str, Sequence[int]]
    stops: Mapping[str, Sequence[int]]
    parts: Mapping[str, int]
    label_parts: int
    span_rows: int
    block_requests: int
    opens: Opens = field(default=FileHere, compare=False)

    @staticmethod
    def of(
        project: Project,
        build: Path,
        spill: Path,
        *,
        shards: int,
        as_of_us: int,
        live: Path | None = None,
    ) -> HistoryPlan:
        """Plan the work on the log of a build.

        Args:
            project: The project.
            build: The folder of the build.
            spill: The folder of the spill files.
            shards: The number of shards of each view.
            as_of_us: The instant that the states are as of.
            live: The folder of the live log whose rows are in the build; None if there is none.

        Raises:
            InputError: A source of the project has no log.
        """
        log = Log(build)
        names = [*(stream.name for stream in project.streams), project.request.name]
        lengths = {name: log.lengths(name) for name in names}
        asked = sum(lengths[project.request.name])

        def parts(rows: int, shards: int) -> int:
            return max(1, -(-rows // (PART_ROWS * shards)))

        label = project.label
        return HistoryPlan(
            request=project.request.name,
            build=str(build),
            spill=str(spill),
            as_of_us=as_of_us,
            watermarks=watermarks_at(Log(build, live), project, as_of_us),
            shards=shards,
            lengths=lengths,
            stops={
                name: [log.position_at(name, number, as_of_us) for number in range(len(found))]
                for name, found in lengths.items()
            },
            parts={
                view.name: parts(max(asked, sum(lengths[view.stream.name])), shards)
                for view in project.views
            },
            span_rows=SPAN_ROWS,
            block_requests=BLOCK_REQUESTS,
            label_parts=0
            if label is None
            else parts(max(asked, sum(lengths[label.stream.name])), 1),
        )

    def frontier_us(self, project: Project, view: FeatureView) -> int:
        """Return the frontier of the states of a view."""
        return frontier_of(project, view, self.watermarks)

    def encode(self) -> str:
        """Return the plan as JSON."""
        fields = dataclasses.fields(self)
        return json.dumps({one.name: getattr(self, one.name) for one in fields if one.compare})

    @staticmethod
    def decode(text: str) -> HistoryPlan:
        """Read an `encode`."""
        return HistoryPlan(**json.loads(text))

    def pieces(self, view: str) -> int:
        """Return how many parts all shards of a view have."""
        return self.shards * self.parts[view]

    def spans(self, source: str) -> list[Span]:
        """Cut the partitions of a source into spans that are split at once."""
        return self._cut(source, self.span_rows)

    def files(self) -> list[Span]:
        """Cut the requests into files of the training table."""
        return self._cut(self.request, FILE_BLOCKS * self.block_requests)

    def _cut(self, source: str, rows: int) -> list[Span]:
        return [
            Span(source, partition, start, min(start + rows, length))
            for partition, length in enumerate(self.lengths[source])
            for start in range(0, length, rows)
        ]

    @property
    def requests(self) -> int:
        """The number of requests."""
        return sum(self.lengths[self.request])

    @cached_property
    def firsts(self) -> list[int]:
        """The number of the first request of each partition."""
        return [0, *accumulate(self.lengths[self.request])][:-1]

    @cached_property
    def blocks(self) -> list[Span]:
        """The blocks of requests, in order."""
        return self._cut(self.request, self.block_requests)

    @cached_property
    def block_starts(self) -> Int64Array:
        """The number of the first request of each block, and the number of requests."""
        starts = [self.firsts[block.partition] + block.start for block in self.blocks]
        return np.array([*starts, self.requests], np.int64)

    def spilled(self, path: Path) -> SpillFile:
        """Open a spill file; errors as for `SpillFile`."""
        return SpillFile(path, self.opens)

    def split_path(self, span: Span) -> Path:
        """Return the file with the rows of a span, by part."""
        return Path(self.spill, "split", span.name)

    def answers_path(self, view: str, piece: int) -> Path:
        """Return the file with the answers of a part of a view."""
        return Path(self.spill, "answers", f"{view}-{piece:06d}")

    def state_path(self, view: str, piece: int) -> Path:
        """Return the file with the state of a part of a view."""
        return Path(self.spill, "states", f"{view}-{piece:06d}")

    def labels_path(self, piece: int) -> Path:
        """Return the file with the labels of a part."""
        return Path(self.spill, "labels", f"{piece:06d}")

    def by_block(self, numbers: Int64Array) -> Iterator[slice]:
        """Cut ascending numbers of requests by block."""
        ends = np.searchsorted(numbers, self.block_starts).tolist()
        for start, stop in pairwise(ends):
            yield slice(start, stop)
