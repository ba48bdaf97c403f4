"""Infer: answered requests to predictions, with a bundle; without one they have no score.

`predictions` is a plain function; `Infer` loads one scorer for each process.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from tidemill.features.definitions import Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import NULLS, VALUES
from tidemill.features.kernel.columns import column_arrays
from tidemill.features.kernel.prepare import matrix_of, nulls_of
from tidemill.pipelines.io.epochs import epoch_of, with_epoch
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, SENT
from tidemill.pipelines.stream.answer_join import AS_OF, RELEASE, SHARD
from tidemill.pipelines.stream.operator_figures import report_predictions, scoring
from tidemill.pipelines.stream.rejected_by_stream import unscored_requests
from tidemill.pipelines.stream.scored_by import Recorded, ScoredBy, decision_of
from tidemill.pipelines.stream.windowed import windowed
from tidemill.pipelines.telemetry.stage_figures import NO_FIGURES, FiguresPlace
from tidemill.serving.bundles.blocks import Blocks, Layout, MatrixPacking
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.inference import Scorer, shared_scorer
from tidemill.serving.bundles.saved_model import SCORE_OUTPUT
from tidemill.serving.models.feed import Rejection

_SCORERS: Final = 3
"""So many bundles stay loaded: the newest, and those of requests that have waited."""
UNSCORED: Final = "unscored"
"""The tag of the requests that a model refuses."""
_SCORED_BY: Final = (
    "bundle_version", "transform_hash", "spec_hash", "device", "tensorflow", "xla",
)  # fmt: skip


def request_inputs(project: Project, answered: pa.RecordBatch) -> dict[str, pa.Array]:
    """Return those of the model's inputs that are the request's own, by name."""
    requests = answered.select(list(project.request.schema))
    return {name: e.evaluate(requests) for name, e in project.request.inputs.items()}


def feature_columns(project: Project, answered: pa.RecordBatch) -> dict[str, pa.Array]:
    """Return the feature columns of answered requests, by name."""
    return column_arrays(
        project.columns, matrix_of(answered.column(VALUES)), nulls_of(answered.column(NULLS))
    )


def packed(
    layout: Layout, project: Project, answered: pa.RecordBatch, inputs: Mapping[str, pa.Array]
) -> Blocks:
    """Return what a bundle's model takes of answered requests, straight from their matrices.

    Args:
        layout: The bundle's.
        project: The project.
        answered: The requests.
        inputs: The request's own inputs (`request_inputs`).
    """
    words, nulls = matrix_of(answered.column(VALUES)), nulls_of(answered.column(NULLS))
    return packing_of(layout, project).pack(words, nulls, inputs)


def packing_of(layout: Layout, project: Project) -> MatrixPacking:
    """Return what packs blocks of the matrices of a project's answers."""
    return _packing(layout, tuple(column.name for column in project.columns))


@functools.lru_cache(maxsize=16)
def _packing(layout: Layout, columns: tuple[str, ...]) -> MatrixPacking:
    return MatrixPacking(layout, columns)


def predictions(
    project: Project,
    scorer: Scorer | None,
    answered: pa.RecordBatch,
    created_us: int,
    parts: Sequence[int] | None = None,
) -> pa.RecordBatch:
    """Score answered requests.

    Args:
        project: The project.
        scorer: A bundle's scorer; None for a project without a model.
        answered: Answered requests (`pipelines.stream.answer_join.answered_schema`), ``(rows,)``.
        created_us: The wall clock, for the predictions' stamps.
        parts: The rows of each part, which is scored as if it were alone; None is one part.

    Returns:
        One prediction for each request, ``(rows,)``: ids and times, the instant and release of each
        view's answer, the feature values, the score, and the versions that the score depends on.
        Without a scorer, the score and what it depends on are null, but for the feature-spec hash.
        Where the model refuses a request, the score is null.
    """
    return scored(project, scorer, answered, created_us, parts).predictions


class Scored(NamedTuple):
    """What became of answered requests.

    Attributes:
        predictions: One for each, ``(rows,)``.
        refused: Those that the model refuses: they have no score.
    """

    predictions: pa.RecordBatch
    refused: Sequence[Rejection]


def scored(
    project: Project,
    scorer: Scorer | None,
    answered: pa.RecordBatch,
    created_us: int,
    parts: Sequence[int] | None = None,
) -> Scored:
    """Score answered requests as `predictions` does, and say which of them the model refuses."""
    rows = answered.num_rows
    request = project.request
    inputs = request_inputs(project, answered)
    out: dict[str, pa.Array] = {
        "request_id": answered.column(request.request_id).cast(pa.string()),
        "request_time": answered.column(request.request_time),
        "partition": answered.column(PARTITION),
        "position": answered.column(POSITION),
    }
    for prefix, column in (("as_of", AS_OF), ("release", RELEASE), ("shard", SHARD)):
        words = matrix_of(answered.column(column))
        for index, view in enumerate(project.views):
            out[f"{prefix}__{view.name}"] = pa.array(np.ascontiguousarray(words[:, index]))
    out |= inputs
    out |= feature_columns(project, answered)
    refused: Sequence[Rejection] = ()
    if scorer is None:
        score = pa.nulls(rows, pa.float32())
        padded = places = pa.nulls(rows, pa.int64())
        values: tuple[str | bool | None, ...] = (None, None, project.hash, None, None, None)
    else:
        found = scorer.call(packed(scorer.layout, project, answered, inputs), parts)
        score, refused = found.outputs.column(SCORE_OUTPUT), found.rejected
        padded = pa.array(found.padded_rows.astype(np.int64))
        places = pa.array(found.call_rows.astype(np.int64))
        by = scorer.stamps
        values = (by.bundle, by.transform, by.features, by.device, by.tensorflow, by.xla)
    out["score"] = score
    for name, value in zip(_SCORED_BY, values, strict=True):
        kind = pa.bool_() if name == "xla" else pa.string()
        out[name] = pa.repeat(pa.scalar(value, kind), rows)
    out["padded_rows"], out["call_row"] = padded, places
    out["received_us"] = answered.column(RECEIVED)
    out["sent_us"] = answered.column(SENT)
    out["created_us"] = pa.repeat(pa.scalar(created_us, pa.int64()), rows)
    return Scored(pa.RecordBatch.from_pydict(out), refused)


def scorer_of(bundle: Path, project: Project) -> Scorer:
    """Return this process's scorer for a bundle's folder.

    Raises:
        BundleError: It is damaged, or was trained for other definitions.
    """
    return shared_scorer(Bundle.load(bundle, project))


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch, **{UNSCORED: pa.RecordBatch})
@dataclass(eq=False)
class Infer(beam.DoFn):
    """Turns answered record batches into predictions, and rejected records where a model refuses.

    Predictions are made of all answers of a bundle at once, which takes about as long for many rows
    as for a few. Each batch of answers is scored by itself, and gives a batch of predictions, the
    same bytes as alone: what a bundle is depends on the engine.

    Attributes:
        project: The project.
        bundles: The bundles, and from where on each scores; none for a project without a model.
        figures: Where the stage reports what it does.
        recorded: Where other bundles are recorded while the stream runs; None if none are.
        exchange: Where the worker meets the program that has the folder, if it is on another disk.
    """

    project: Project
    bundles: tuple[ScoredBy, ...]
    figures: FiguresPlace = NO_FIGURES
    exchange: ExchangePlace | None = None
    recorded: Recorded | None = None

    def setup(self) -> None:
        """Load the newest bundle; scorers are shared in the process."""
        self._scorers: dict[Path, Scorer] = {}
        self._now: tuple[ScoredBy, ...] = self.bundles
        self._seen: tuple[int, int] | None = None
        self._look()
        if self._now:
            self._scorer(len(self._now) - 1)

    def start_bundle(self) -> None:
        """Begin a bundle."""
        self._bundle: list[pa.RecordBatch] = []

    def process(self, element: pa.RecordBatch) -> None:
        """Collect answered requests."""
        self._bundle.append(element)

    def finish_bundle(self) -> Iterator[WindowedValue | TaggedOutput]:
        """Score the bundle; yield the predictions of each batch, with its newest time.

        The requests that the model refuses are yielded as rejected records, tagged `UNSCORED`.
        """
        bundle, self._bundle = self._bundle, []
        self._look()
        if not self._now:
            yield from self._made(bundle, None)
            return
        for number, some in itertools.groupby(bundle, self._decision):
            yield from self._made(list(some), self._scorer(number))

    def _look(self) -> None:
        """Take over what was recorded since: before the rows that it concerns were sent."""
        if self.recorded is None or not self.bundles:
            return
        if (seen := self.recorded.changed(self._seen)) is not None:
            self._now, self._seen = self.recorded.read(), seen

    def _decision(self, answered: pa.RecordBatch) -> int:
        """Return the number of the bundle that scores a batch, which has the requests of a poll."""
        if len(self._now) == 1:
            return 0
        partition, position = (hashing.bits(answered.column(n))[:1] for n in (PARTITION, POSITION))
        return int(decision_of([one.since for one in self._now], partition, position)[0])

    def _scorer(self, number: int) -> Scorer:
        folder = self._now[number].bundle
        if folder not in self._scorers:
            if len(self._scorers) >= _SCORERS:
                del self._scorers[next(iter(self._scorers))]
            here = folder if self.exchange is None else self.exchange.here().folder(folder)
            self._scorers[folder] = scorer_of(here, self.project)
        return self._scorers[folder]

    def _made(
        self, bundle: Sequence[pa.RecordBatch], scorer: Scorer | None
    ) -> Iterator[WindowedValue | TaggedOutput]:
        start, request = 0, self.project.request
        if bundle:
            made, refused = self._scored(bundle, scorer)
        for answered in bundle:
            stop = start + answered.num_rows
            mine, epoch = made.slice(start, answered.num_rows), epoch_of(answered)
            newest_us = int(hashing.bits(answered.column(request.request_time))[-1])
            if bad := [
                one._replace(row=one.row - start) for one in refused if start <= one.row < stop
            ]:
                assert scorer is not None
                version = scorer.stamps.bundle
                for records in unscored_requests(request, answered, bad, version):
                    yield TaggedOutput(UNSCORED, windowed(with_epoch(records, epoch), newest_us))
                mine = mine.filter(pc.is_valid(mine.column("score")))
            if mine.num_rows:
                yield windowed(with_epoch(mine, epoch), newest_us)
            start = stop

    def _scored(self, bundle: Sequence[pa.RecordBatch], scorer: Scorer | None) -> Scored:
        figures, now_us = self.figures.here(), time.time_ns() // 1_000
        answered = pa.concat_batches([with_epoch(one, 0) for one in bundle])
        parts = [one.num_rows for one in bundle]
        with scoring(figures, answered.num_rows):
            made = scored(self.project, scorer, answered, now_us, parts)
        report_predictions(figures, made.predictions)
        return made
