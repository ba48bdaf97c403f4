"""A tiny project for the streaming tests: three views over two streams, and logs of it.

Cabs (string keys) and zones (int64 keys) are described by trips; zones by rain as well. A log has
an order of arrival that its definitions allow: a row arrives at most its source's
out-of-orderness after its time, so nothing of it is late.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

import tidemill
from tests.support.strategies import to_batch
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
    col,
    count,
    distinct_count,
    last,
    mean,
    time_since_last,
)
from tidemill.features.contract import MINUTE, SECOND, TIME_MIN, Int64Array
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import matrix_of, nulls_of
from tidemill.pipelines.config.configuration import Configuration, Splits, StreamOptions, Training
from tidemill.pipelines.engines.choosing import choose_engine, engine_options, make_runner
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.io.log import POSITION, RECEIVED, Log
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.stream.answer_join import AS_OF, AnswerJoiner
from tidemill.pipelines.stream.answer_parts import AnswerPart, RequestPart, Unanswered
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.sequence import decode_batches
from tidemill.pipelines.stream.shard import request_parts, shard_poll
from tidemill.serving.stores.online_places import SqlitePlace

Row = dict[str, Any]

START = 1_600_000_000 * SECOND
"""A minute's boundary, and where the logs begin."""

TRIPS = EventStream(
    "trips",
    schema={"at": "timestamp", "trip": "string", "cab": "string", "zone": "int64",
            "fare": "float64", "card": "bool"},
    event_time="at",
    event_id="trip",
    out_of_orderness="10s",
    allowed_lateness="30s",
)  # fmt: skip
RAIN = EventStream(
    "rain",
    schema={"at": "timestamp", "reading": "int64", "zone": "int64", "mm": "float64"},
    event_time="at",
    event_id="reading",
)
CAB = FeatureView(
    "cab",
    entity=Entity("cab"),
    stream=TRIPS,
    hop="30s",
    features={
        "trips_2m": count(over="2m"),
        "fares_5m": tidemill.sum(col("fare"), over="5m"),
        "last_fare_5m": last(col("fare"), over="5m", where=col("card")),
        "quiet_5m": time_since_last(over="5m"),
    },
)
ZONE = FeatureView(
    "zone",
    entity=Entity("zone", dtype="int64"),
    stream=TRIPS,
    hop="1m",
    features={
        "mean_fare_3m": mean(col("fare"), over="3m"),
        "cabs_3m": distinct_count(col("cab"), over="3m"),
    },
)
WEATHER = FeatureView(
    "weather",
    entity=Entity("zone", dtype="int64"),
    stream=RAIN,
    hop="1m",
    features={"rain_4m": tidemill.sum(col("mm"), over="4m")},
)
REQUEST = Request(
    "hails",
    schema={"at": "timestamp", "hail": "string", "cab": "string", "zone": "int64",
            "riders": "int64"},
    request_time="at",
    request_id="hail",
    inputs={"riders": col("riders")},
    out_of_orderness="5s",
)  # fmt: skip
PROJECT = Project(
    "cabs",
    request=REQUEST,
    views=[CAB, ZONE, WEATHER],
    label=Label("paid_by_card", TRIPS, col("card"), on={"hail": "trip"}, horizon="2m"),
)
UNLABELLED = replace(PROJECT, label=None)
PARTITIONS = {"trips": 2, "rain": 1, "hails": 2}


@dataclass(frozen=True)
class Arrived:
    """The rows of one partition, in order of arrival.

    Attributes:
        source: The stream's or the request's name.
        partition: The partition.
        rows: The rows.
        received_us: When each arrived, ascending.
    """

    source: str
    partition: int
    rows: Sequence[Row]
    received_us: Sequence[int]


def arrivals(
    project: Project,
    rows: Mapping[str, Sequence[Row]],
    partitions: Mapping[str, int],
    chance: random.Random,
) -> list[Arrived]:
    """Deal rows to partitions, each row delayed by at most its source's out-of-orderness."""
    out = []
    for source, partition_count in partitions.items():
        definition = project.definition(source)
        time = definition.time_column
        dealt: list[list[tuple[int, int, Row]]] = [[] for _ in range(partition_count)]
        for number, row in enumerate(rows[source]):
            delay = chance.randint(0, definition.out_of_orderness_us)
            dealt[chance.randrange(partition_count)].append((row[time] + delay, number, row))
        for partition, mine in enumerate(dealt):
            mine.sort(key=lambda arrival: arrival[:2])
            out.append(Arrived(source, partition, [m[2] for m in mine], [m[0] for m in mine]))
    return out


def random_rows(seed: int, trips: int = 120, hails: int = 60) -> dict[str, list[Row]]:
    """Rows of all sources over ten minutes, with duplicates, nulls and equal times."""
    chance = random.Random(seed)

    def time() -> int:
        at = START + chance.randrange(600) * SECOND
        return at + chance.choice((0, 0, -1, 1, chance.randrange(SECOND)))

    made: list[Row] = [
        {
            "at": time(),
            "trip": f"h{number % hails}" if chance.random() < 0.5 else f"t{number}",
            "cab": chance.choice(("a", "b", "ç", "")),
            "zone": chance.choice((1, 2, -3)),
            "fare": None if chance.random() < 0.1 else chance.uniform(0, 100),
            "card": chance.choice((True, False, None)),
        }
        for number in range(trips)
    ]
    made += [dict(chance.choice(made)) for _ in range(trips // 10)]
    rain = [
        {"at": time(), "reading": number, "zone": chance.choice((1, 2)), "mm": chance.random()}
        for number in range(trips // 3)
    ]
    asked = [
        {
            "at": time(),
            "hail": f"h{number}",
            "cab": chance.choice(("a", "b", "ç", "unknown", None)),
            "zone": chance.choice((1, 2, -3, 9, None)),
            "riders": chance.randrange(1, 5),
        }
        for number in range(hails)
    ]
    return {"trips": made, "rain": rain, "hails": asked}


def write_log(build: Path, project: Project, arrived: Iterable[Arrived]) -> None:
    """Write what arrived as the log in the folder of a build."""
    for part in arrived:
        definition = project.definition(part.source)
        table = pa.Table.from_batches([to_batch(definition.schema, part.rows)])
        Log(build).write(definition, part.partition, table, np.array(part.received_us, np.int64))


def poll_part(
    project: Project, part: Arrived, start: int, stop: int, watermark_us: int
) -> PollPart:
    """Read ``[start, stop)`` of a partition."""
    rows = None
    if stop > start:
        schema = project.definition(part.source).schema
        rows = (
            to_batch(schema, part.rows[start:stop])
            .append_column(POSITION, pa.array(range(start, stop), pa.int64()))
            .append_column(RECEIVED, pa.array(part.received_us[start:stop], pa.int64()))
        )
    return PollPart(part.source, part.partition, start, stop, watermark_us, rows)


def watermark_after(project: Project, part: Arrived, stop: int) -> int:
    """Return the watermark that the rows below ``stop`` allow."""
    definition = project.definition(part.source)
    times = [row[definition.time_column] for row in part.rows[:stop]]
    return max(times) - definition.out_of_orderness_us if times else TIME_MIN


def random_polls(
    project: Project, arrived: Sequence[Arrived], end_us: int, count: int, chance: random.Random
) -> list[Poll]:
    """Cut a log into polls: each partition anywhere, so that some lag behind others."""
    cuts = [sorted(chance.randint(0, len(part.rows)) for _ in range(count - 1)) for part in arrived]
    polls = []
    at = [0] * len(arrived)
    for number in range(count):
        parts = []
        for index, part in enumerate(arrived):
            stop = len(part.rows) if number == count - 1 else cuts[index][number]
            final = number == count - 1
            watermark = end_us if final else watermark_after(project, part, stop)
            parts.append(poll_part(project, part, at[index], stop, watermark))
            at[index] = stop
        polls.append(Poll(number + 1, sent_us=number, parts=tuple(parts)))
    return polls


Element = tuple[int, int, bytes]
"""What goes to one operator: the view's place, the shard, its sequenced batches."""
Vector = tuple[tuple[int | None, ...], tuple[int, ...]]
"""An answer: the 64-bit patterns of all columns (None for null), and an as_of per view."""


def elements_of(project: Project, shards: int, polls: Iterable[Poll]) -> list[Element]:
    plans = {view.name: make_plan(view) for view in project.views}
    return [element for poll in polls for element in shard_poll(project, plans, shards, poll)]


def answer_part(operator: ShardOperator, release: Release) -> AnswerPart:
    """Return what an operator sends to the joining stage after a release."""
    key = operator.key
    return AnswerPart(key.view, key.shard, release.number, release.frontier_us, release.answers)


@dataclass
class PlainStream:
    """The stream's operators and joiner as plain objects, without an engine."""

    project: Project
    shards: int
    partitions: Mapping[str, int]
    mode: Mode = Mode.EXACT
    gap_batches: int = 1_000
    answer_within_us: int = 2**61
    operators: dict[tuple[int, int], ShardOperator] = field(default_factory=dict)
    releases: list[tuple[int, int, Release]] = field(default_factory=list)
    answered: list[pa.RecordBatch] = field(default_factory=list)
    unanswered: list[Unanswered] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.joiner = AnswerJoiner(self.project, self.shards, self.answer_within_us)
        self.options = FeaturizeOptions(
            run="plain",
            shards=self.shards,
            partitions=dict(self.partitions),
            mode=self.mode,
            gap_batches=self.gap_batches,
        )

    def operator(self, view: int, shard: int) -> ShardOperator:
        if (view, shard) not in self.operators:
            key = operator_key(self.project, view, shard, self.shards)
            self.operators[view, shard] = make_operator(self.project, key, self.options)
        return self.operators[view, shard]

    def operate(self, elements: Iterable[Element]) -> list[AnswerPart]:
        """Give each operator its elements at once, as a bundle would."""
        bundle: dict[tuple[int, int], list[bytes]] = {}
        for view, shard, data in elements:
            bundle.setdefault((view, shard), []).append(data)
        parts = []
        for (view, shard), mine in bundle.items():
            operator = self.operator(view, shard)
            for release in operator.receive(
                batch for data in mine for batch in decode_batches(data, operator.event_schema)
            ):
                self.releases.append((view, shard, release))
                parts.append(answer_part(operator, release))
        return parts

    def join(self, parts: Iterable[RequestPart | AnswerPart]) -> None:
        answered, unanswered = self.joiner.receive(parts)
        self.answered += answered
        self.unanswered += unanswered

    def run(self, polls: Iterable[Poll]) -> None:
        """Take polls one by one, in order."""
        for poll in polls:
            parts = self.operate(elements_of(self.project, self.shards, [poll]))
            self.join([*request_parts(self.project, poll), *parts])


def vectors_of(project: Project, answered: Iterable[pa.RecordBatch]) -> dict[Any, Vector]:
    """Return each answered request's values, bit for bit, by its (unique) id."""
    out: dict[Any, Vector] = {}
    for batch in answered:
        values = matrix_of(batch.column("values"))
        nulls = nulls_of(batch.column("nulls"))
        as_of = matrix_of(batch.column(AS_OF))
        for i, name in enumerate(batch.column(project.request.request_id).to_pylist()):
            assert name not in out, f"request {name!r} was answered twice"
            out[name] = (_words(values[i], nulls[i]), tuple(as_of[i].tolist()))
    return out


def _words(values: Int64Array, nulls: Any) -> tuple[int | None, ...]:
    return tuple(None if n else v for v, n in zip(values.tolist(), nulls.tolist(), strict=True))


def expected_vectors(
    project: Project,
    rows: Mapping[str, Sequence[Row]],
    as_of: Mapping[Any, Sequence[int]] | None = None,
) -> dict[Any, Vector]:
    """Compute each request's values in batch: as of its time, or as of the instants given."""
    request = project.request
    asked = list(rows[request.name])
    names = [row[request.request_id] for row in asked]
    words: list[tuple[int | None, ...]] = [()] * len(asked)
    instants: list[tuple[int, ...]] = [()] * len(asked)
    batch = to_batch(request.schema, asked)
    for index, view in enumerate(project.views):
        times = [
            row[request.request_time] if as_of is None else as_of[name][index]
            for name, row in zip(names, asked, strict=True)
        ]
        values, nulls = values_at(
            view,
            to_batch(view.stream.schema, rows[view.stream.name]),
            batch.column(request.key_column(view.entity)),
            np.array(times, np.int64),
        )
        for i, time in enumerate(times):
            words[i] += _words(values[i], nulls[i])
            instants[i] += (time,)
    return {name: (words[i], instants[i]) for i, name in enumerate(names)}


def end_of(rows: Mapping[str, Sequence[Row]]) -> int:
    """Return an instant after every row of all sources."""
    return max((row["at"] for mine in rows.values() for row in mine), default=0) + 1


ENGINES = ("fnapi", "prism")

COLLECTED: dict[str, list[Any]] = {}
"""The outputs of pipelines under test, by name: both engines run their steps in this process."""


class Collect(beam.DoFn):
    """Keeps the elements of an output."""

    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, element: Any) -> None:
        COLLECTED.setdefault(self._name, []).append(element)


def collect(outputs: Mapping[str, Any]) -> None:
    """Keep the elements of these collections in `COLLECTED`, by name."""
    COLLECTED.clear()
    for name, pcoll in outputs.items():
        _ = pcoll | f"Collect {name}" >> beam.ParDo(Collect(name))


def collected(name: str) -> list[Any]:
    return COLLECTED.get(name, [])


def pipeline_on(engine: str, streaming: bool) -> tuple[beam.Pipeline, Any]:
    choice = choose_engine(engine, streaming=streaming)
    options = PipelineOptions(engine_options(choice))
    return beam.Pipeline(runner=make_runner(choice), options=options), choice


def unanswered_ids(batch: pa.RecordBatch) -> list[str]:
    return [str(name) for name in batch.column(REQUEST.request_id).to_pylist()]


def configuration(
    root: Path,
    project: Project,
    stream_from_us: int,
    stream_until_us: int,
    shards: int = 2,
    **stream_options: Any,
) -> Configuration:
    """A configuration whose log is written already; it has no source files."""
    return Configuration(
        path=root / "tidemill.yaml",
        project_name="tests.support.streaming_project:PROJECT",
        project=project,
        root=root,
        shards=shards,
        sources={},
        splits=Splits(stream_from_us - MINUTE, stream_from_us, stream_until_us),
        training=Training(),
        online_store=SqlitePlace(root / "online.db"),
        stream=StreamOptions(**stream_options),
    )


def without_leaks(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Rename the trips that are at or before the request that they would label."""
    asked = {row["hail"]: row["at"] for row in rows["hails"]}
    trips = [
        {**row, "trip": f"x{row['trip']}"} if row["at"] <= asked.get(row["trip"], -1) else row
        for row in rows["trips"]
    ]
    return {**rows, "trips": trips}


def newest_publications(
    releases: Iterable[tuple[int, int, Release]],
) -> dict[tuple[int, str], tuple[Any, ...]]:
    """Keep the newest publication of each entity, as the online store does."""
    store: dict[tuple[int, str], tuple[Any, ...]] = {}
    for view, _, release in releases:
        for row in release.publications.to_pylist():
            found = (
                row["event_timestamp"],
                row["revision"],
                row["valid_until"],
                row["values"],
                row["nulls"],
            )
            known = store.get((view, row["key"]))
            assert known is None or found[:2] >= known[:2]
            assert known is None or found[:2] > known[:2] or found == known
            store[view, row["key"]] = found
    return store
