"""Inference: calls of a model beside TensorFlow alone, and Beam's frame beside a plain DoFn.

TensorFlow alone is a loop over the concrete function of the signature, on tensors that were built
beforehand. Two models: the bundle of the flights, from the matrices of answered requests to scores
(seven inputs of the request, 45 features, a transform graph with vocabularies), and a perceptron
over 47 floats, from a column of lists. Rates are rows a second; the bytes of both sides are
compared first.

The frame's cost is that of `RunInference` over a DoFn that calls the handler, a batch an element,
with a model that does nothing. Added latency is that of rows that come one by one, 1,000 a second,
to threads that share the calls of the bundle, beside one loop over the concrete function.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference

from benchmarks.measure import AnswersDiffer, Effort, Figure, Side, alternate, ratios, spread
from tests.support.called_models import dense_model
from tidemill.examples.flights.project import project
from tidemill.features.contract import HOUR, Int64Array
from tidemill.features.definitions import BOOL, FLOAT64, STRING
from tidemill.features.kernel.columns import column_arrays
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.config.configuration import Splits, Training
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream.infer import packing_of
from tidemill.pipelines.training.train import train_bundle
from tidemill.serving import TensorFlowModelHandler
from tidemill.serving.bundles.blocks import ColumnFeed, UInt8Array
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.inference import Scorer
from tidemill.serving.models.buckets import padded_rows
from tidemill.serving.models.saved_model import Outcome, SavedModel
from tidemill.serving.models.shared_calls import SharedCalls
from tidemill.serving.models.tensorflow_start import load_tensorflow

SIZES: Final = (8, 42, 256, 1_024, 4_096)
WIDTH: Final = 47
ELEMENTS: Final = 50_000
RATE: Final = 1_000
THREADS: Final = 16
_TRAINED: Final = 4_000
_START: Final = 1_600_000_000_000_000
_ROWS_OF_ELEMENTS: Final = 42


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    figures: list[Figure] = []
    sizes = SIZES[:2] if quick else SIZES
    with tempfile.TemporaryDirectory(prefix="tidemill-inference-") as text:
        folder = Path(text)
        scorer = Scorer(_bundle(folder))
        for rows in sizes:
            figures += _compared(f"flights, {rows:,} rows", rows, effort, *_of_bundle(scorer, rows))
        network = SavedModel(dense_model(folder / "network", WIDTH, 64))
        for rows in sizes:
            name = f"{WIDTH} floats, {rows:,} rows"
            figures += _compared(name, rows, effort, *_of_network(network, rows))
        equal = Figure("scores that have TensorFlow's bytes", 2 * sum(sizes), "values")
        figures += [equal, *_latency(scorer, quick)]
        figures.append(_frame(folder / "network", 500 if quick else ELEMENTS, effort))
    return figures


Call = Callable[[], Any]


def _compared(name: str, rows: int, effort: Effort, bare: Call, ours: Call) -> list[Figure]:
    if np.asarray(bare()["score"])[:rows].tobytes() != np.asarray(ours()).tobytes():
        raise AnswersDiffer(f"{name}: the scores differ")
    times = max(1, 2_048 // rows)

    def side(call: Call) -> Side:
        def work() -> int:
            for _ in range(times):
                call()
            return rows * times

        return Side(work)

    runs = alternate({"bare": side(bare), "ours": side(ours)}, effort)
    cpu = [one.cpu_s / one.amount * rows * 1e6 for one in runs["bare"]]
    _, share = ratios(f"{name}: share of TensorFlow alone", runs["ours"], runs["bare"])
    return [share, spread(f"{name}: TensorFlow alone, a call", cpu, "us of CPU")]


def _of_bundle(scorer: Scorer, rows: int) -> tuple[Call, Call]:
    chance = np.random.default_rng(rows)
    words, nulls, inputs = _answers(rows, chance)
    packing = packing_of(scorer.layout, project)
    blocks = packing.pack(words, nulls, inputs)
    tensors = blocks.tensors(padded_rows(rows))
    function = scorer.concrete_function

    def ours() -> pa.Array:
        return scorer.call(packing.pack(words, nulls, inputs)).outputs.column("score")

    return lambda: function(**tensors), ours


def _of_network(model: SavedModel, rows: int) -> tuple[Call, Call]:
    values = np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH)
    batch = pa.RecordBatch.from_pydict({"x": column})
    padded = model.bucket(rows)
    whole = np.concatenate([values, *[values[-1:]] * (padded - rows)])
    x = load_tensorflow().constant(whole)
    function = model.concrete_function
    return lambda: function(x=x), lambda: model.call(batch).outputs.column("score")


def _latency(scorer: Scorer, quick: bool) -> list[Figure]:
    """Measure single rows that come at a steady rate, by TensorFlow alone and by shared calls."""
    bare, _ = _of_bundle(scorer, 1)
    feed, zeros = ColumnFeed(scorer.layout), scorer.layout.zeros()
    model = SavedModel(scorer.bundle.model_directory, feed=feed, warm_up=zeros)
    shared = SharedCalls(model, 0.0)
    words, nulls, own = _answers(1, np.random.default_rng(1))
    row = pa.RecordBatch.from_pydict({**own, **column_arrays(project.columns, words, nulls)})
    shared.call(row)
    seconds = 0.2 if quick else 10.0
    found: dict[str, list[float]] = {"bare": [], "ours": []}
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(1 if quick else 3):
            alone = _paced(lambda done: done(bare()), seconds)
            together = _paced(
                lambda done: threads.submit(shared.call, row).add_done_callback(done), seconds
            )
            for name, took in (("bare", alone), ("ours", together)):
                found[name].append(float(np.percentile(took, 99)) * 1e3)
    added = [ours - bare for bare, ours in zip(found["bare"], found["ours"], strict=True)]
    name = f"single rows, {RATE:,} a second"
    return [
        spread(f"{name}: p99 of TensorFlow alone", found["bare"], "ms"),
        spread(f"{name}: added p99", added, "ms"),
    ]


def _paced(call: Callable[[Callable[[Any], None]], Any], seconds: float) -> list[float]:
    """Call at the rate; return how long after its time each call has ended, in seconds.

    Args:
        call: Makes a call, and calls what it is given once that has ended.
        seconds: So long.
    """
    took: list[float] = []
    due = time.perf_counter()
    calls = round(seconds * RATE)
    for _ in range(calls):
        while (wait := due - time.perf_counter()) > 0:
            time.sleep(wait)

        def done(_: object, since: float = due) -> None:
            took.append(time.perf_counter() - since)

        call(done)
        due += 1 / RATE
    while len(took) < calls:
        time.sleep(0.01)
    return took


class _Nothing(TensorFlowModelHandler):
    """The handler with a model that does nothing."""

    def load_model(self) -> Any:
        class Model:
            outcome: Outcome | None = None

            def call(self, batch: pa.RecordBatch) -> Outcome:
                if self.outcome is None:
                    rows = np.arange(batch.num_rows, dtype=np.int32)
                    scores = pa.RecordBatch.from_pydict({"score": rows.astype(np.float32)})
                    self.outcome = Outcome(scores, (), np.full_like(rows, 64), rows)
                return self.outcome

        return Model()


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch)
class _Plain(beam.DoFn):
    """Calls the handler, without Beam's frame."""

    def __init__(self, handler: TensorFlowModelHandler) -> None:
        self._handler = handler

    def setup(self) -> None:
        self._model = self._handler.load_model()

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield from self._handler.run_inference(element, self._model)


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(pa.RecordBatch)
class _Many(beam.DoFn):
    """Gives a batch many times."""

    def __init__(self, batch: pa.RecordBatch, times: int) -> None:
        self._batch, self._times = batch, times

    def process(self, element: bytes) -> Iterator[pa.RecordBatch]:
        for _ in range(self._times):
            yield self._batch


def _frame(folder: Path, elements: int, effort: Effort) -> Figure:
    handler = _Nothing(folder)
    sides = {
        "plain": _pipeline(elements, lambda: beam.ParDo(_Plain(handler))),
        "frame": _pipeline(elements, lambda: RunInference(handler)),
    }
    runs = alternate(sides, Effort(effort.pairs, 0.0))
    costs = [
        (frame.cpu_s - plain.cpu_s) / elements * 1e6
        for plain, frame in zip(runs["plain"], runs["frame"], strict=True)
    ]
    return spread("RunInference over a plain DoFn, an element", costs, "us of CPU")


def _pipeline(elements: int, step: Callable[[], Any]) -> Side:
    values = pa.array(np.zeros(_ROWS_OF_ELEMENTS * WIDTH, np.float32))
    batch = pa.RecordBatch.from_pydict({"x": pa.FixedSizeListArray.from_arrays(values, WIDTH)})

    def work() -> int:
        with beam.Pipeline() as pipeline:
            _ = pipeline | beam.Impulse() | beam.ParDo(_Many(batch, elements)) | "Model" >> step()
        return elements

    return Side(work)


def _answers(
    rows: int, chance: np.random.Generator
) -> tuple[Int64Array, UInt8Array, dict[str, pa.Array]]:
    """Return words and nulls of answers, and the request's own inputs, by name."""
    columns = project.columns
    words = chance.integers(0, 2, (rows, len(columns)))
    for index, column in enumerate(columns):
        if column.dtype == FLOAT64:
            words[:, index] = chance.lognormal(2.0, 1.0, rows).view(np.int64)
        elif column.dtype != BOOL:
            words[:, index] = chance.integers(0, 1_000, rows)
    nulls = (chance.random(words.shape) < 0.1).astype(np.uint8)
    return words, nulls, {name: _column(name, rows, chance) for name in project.request.inputs}


def _column(name: str, rows: int, chance: np.random.Generator) -> pa.Array:
    dtype = project.request.inputs[name].dtype(project.request.schema)
    if dtype == STRING:
        return pa.array(chance.choice([f"{name}{n}" for n in range(100)], rows))
    whole = chance.integers(0, 24, rows)
    return pa.array(whole.astype(np.float64) if dtype == FLOAT64 else whole)


def _bundle(folder: Path) -> Bundle:
    """Train the flights' model on rows drawn at random."""
    chance = np.random.default_rng(1)
    times = pa.array(_START + HOUR // 10 * np.arange(_TRAINED), pa.timestamp("us", tz="UTC"))
    columns: dict[str, pa.Array] = {
        "request_id": pa.array([f"f{n}" for n in range(_TRAINED)]),
        "request_time": times,
    }
    words, nulls, own = _answers(_TRAINED, chance)
    for wanted in model_inputs(project):
        if wanted.name in own:
            columns[wanted.name] = own[wanted.name]
            continue
        index = [column.name for column in project.columns].index(wanted.name)
        word = np.ascontiguousarray(words[:, index])
        null = nulls[:, index].astype(np.bool_)
        values = word.view(np.float64) if wanted.dtype == FLOAT64 else word
        values = word != 0 if wanted.dtype == BOOL else values
        columns[wanted.name] = pa.array(values, mask=null)
    columns["label"] = pa.array((chance.random(_TRAINED) < 0.3).astype(np.float64))
    columns["label_time"] = times
    write_rows(folder / "table", pa.table(columns), "rows")
    until = _START + HOUR // 10 * (_TRAINED * 3 // 4)
    end = _START + HOUR // 10 * _TRAINED
    return train_bundle(
        project,
        folder / "table",
        Splits(until, end, end),
        Training(epochs=1, batch_size=256, learning_rate=0.01, seeds=1, seed=1, rate_groups=()),
        work=folder / "work",
        bundles=folder / "bundles",
        created_at="2026-01-01T00:00:00Z",
        progress=QuietProgress(),
    )
