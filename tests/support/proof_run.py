"""A small run for the tests of the proof: rides of drivers, served by plain functions.

Everything but the engine and the model is real: `Server` passes each poll to the operators and the
joiner, and writes what the stream writes. Its methods are the places where an engine or a cache
could go wrong; each mutant overrides one.
"""

from __future__ import annotations

import csv
import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.folders import stream_of
from tests.support.streaming_project import answer_part
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Project,
    Request,
    col,
    count,
    distinct_count,
    last,
    last_k,
    max,
    mean,
    quantile,
    rate,
    sum,
    time_since_last,
)
from tidemill.features.contract import DAY, HOUR, MINUTE, SECOND
from tidemill.pipelines.config.configuration import Configuration, Splits, StreamOptions
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.replay import ReplayLog, ReplayOptions
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.publish.newest_rows import newest_per_entity
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.log_parts import source_partitions
from tidemill.pipelines.recovery.republish import start_over
from tidemill.pipelines.run.paths import STATES
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import infer
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.infer import predictions
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.publications import (
    logged_publications,
    named_publications,
)
from tidemill.pipelines.stream.release import Release, Taken
from tidemill.pipelines.stream.release_line import release_line
from tidemill.pipelines.stream.sequence import SequencedBatch, decode_batches
from tidemill.pipelines.stream.shard import request_parts, shard_poll
from tidemill.pipelines.stream.state_files import read_handoff
from tidemill.pipelines.stream_run import stream as stream_module
from tidemill.pipelines.verify.instants import instant_text
from tidemill.serving.bundles.blocks import Blocks, Layout
from tidemill.serving.bundles.inference import Stamps
from tidemill.serving.generations.current import write_current
from tidemill.serving.models.buckets import MAX_ROWS, padded_rows
from tidemill.serving.models.saved_model import Outcome
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.parcels import parcels_of
from tidemill.serving.stores.online_places import SqlitePlace

START = 1_767_225_600 * SECOND  # 2026-01-01
EVALUATE_UNTIL = START + 2 * DAY
STREAM_UNTIL = START + 3 * DAY
SHARDS = 2
POLL_ROWS = 15

RIDES = EventStream(
    "rides",
    schema={
        "ride": "string",
        "ended_at": "timestamp",
        "received_at": "timestamp",
        "driver": "string",
        "zone": "int64",
        "fare": "float64",
        "minutes": "int64",
    },
    event_time="ended_at",
    event_id="ride",
    transport=["received_at"],
    out_of_orderness="1m",
    allowed_lateness="2h",
)
BY_DRIVER = FeatureView(
    "by_driver",
    entity=Entity("driver"),
    stream=RIDES,
    hop="5m",
    features={
        "rides_6h": count(over="6h"),
        "fares_6h": sum(col("fare"), over="6h"),
        "mean_fare_1d": mean(col("fare"), over="1d"),
        "last_minutes": last_k(col("minutes"), k=2, over="1d"),
        "fare_p90_1d": quantile(col("fare"), 0.9, over="1d"),
        "idle": time_since_last(over="1d"),
        "last_dear": last(col("fare") > 20.0, over="1d"),
        "long_ride_at": max(col("ended_at"), over="6h", where=col("minutes") > 30),
    },
)
BY_ZONE = FeatureView(
    "by_zone",
    entity=Entity("zone", dtype="int64"),
    stream=RIDES,
    hop="1h",
    features={
        "rides_1d": count(over="1d", where=col("zone") > 0),
        "longest_6h": max(col("minutes"), over="6h"),
        "drivers_1d": distinct_count(col("driver"), over="1d"),
        "dear_rate_1d": rate(col("fare") > 20.0, over="1d"),
    },
)
QUOTES = Request(
    "quotes",
    schema={
        "quote": "string",
        "asked_at": "timestamp",
        "received_at": "timestamp",
        "driver": "string",
        "zone": "int64",
        "km": "float64",
    },
    request_time="asked_at",
    request_id="quote",
    inputs={"km": col("km")},
    out_of_orderness="30s",
    allowed_lateness="1h",
)
PROJECT = Project("rides_project", request=QUOTES, views=[BY_DRIVER, BY_ZONE])
FEATURES = len(PROJECT.columns)


def write_sources(folder: Path) -> None:
    """Write three days of rides, some of them late, and the quotes of the last two."""
    chance = random.Random(7)
    rides: list[dict[str, Any]] = []
    for number in range(700):
        ended = START + chance.randrange(3 * DAY)
        delay = chance.randrange(50 * SECOND)
        if number % 12 == 0:
            delay = chance.randrange(5 * MINUTE, HOUR)
        row: dict[str, Any] = {
            "ride": f"r{number:03}",
            "ended_at": ended,
            "received_at": ended + delay,
            "driver": f"d{chance.randrange(6)}",
            "zone": chance.randrange(4),
            "fare": round(chance.uniform(4, 40), 2) if number % 9 else None,
            "minutes": chance.randrange(3, 70),
        }
        rides.append(row)
    rides += [dict(row) for row in rides[:30]]  # duplicates count once
    rides.sort(key=lambda row: row["received_at"])
    quotes: list[dict[str, Any]] = []
    for number in range(400):
        # Some quotes are asked at the very microsecond at which a ride of the driver ended, some
        # after one that is still on its way.
        ride = chance.choice(rides)
        asked = START + DAY + chance.randrange(2 * DAY)
        driver, zone = chance.choice([*(f"d{n}" for n in range(6)), "new", None]), ride["zone"]
        if number % 4 == 0:
            asked, driver = ride["ended_at"], ride["driver"]
        elif number % 4 == 1:
            under_way = [
                r for r in rides if 15 * SECOND < r["received_at"] - r["ended_at"] < MINUTE
            ]
            ride = chance.choice(under_way)
            asked, driver, zone = ride["ended_at"] + 10 * SECOND, ride["driver"], ride["zone"]
        delay = chance.randrange(2 * MINUTE, 30 * MINUTE) if number % 10 in (3, 6) else SECOND
        quotes.append(
            {
                "quote": f"q{number:03}",
                "asked_at": asked,
                "received_at": asked + delay,
                "driver": driver,
                "zone": zone,
                "km": 1.5,
            }
        )
    # One quote was asked before the stream began and came just after.
    quotes[0] |= {"asked_at": EVALUATE_UNTIL - 45 * SECOND, "received_at": EVALUATE_UNTIL + 1}
    quotes.sort(key=lambda row: row["received_at"])
    rides += unusual(rides)
    rides.sort(key=lambda row: row["received_at"])
    sources: dict[str, list[dict[str, Any]]] = {
        "rides": rides,
        "quotes-0": quotes[::2],
        "quotes-1": quotes[1::2],
    }
    for name, rows in sources.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                times = {k: instant_text(row[k]) for k in row if k.endswith("_at")}
                writer.writerow({**row, **times})


def unusual(rides: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rides that are delivered again, that have the id of another, and without a driver."""
    chance = random.Random(8)
    again = [
        {**row, "received_at": row["received_at"] + chance.randrange(HOUR)}
        for row in chance.sample(rides, 60)
    ]
    others = [{**row, "minutes": row["minutes"] + 1} for row in chance.sample(rides, 10)]
    driverless = [
        {**row, "ride": f"x{number}", "driver": None}
        for number, row in enumerate(chance.sample(rides, 20))
    ]
    return [*again, *others, *driverless]


def rides_yaml(
    root: Path | str = "run", stream_until: str = "2026-01-04T00:00:00Z", more: str = ""
) -> str:
    """Return the text of a configuration file beside the sources; ``more`` are further lines."""
    return f"""\
project: tests.support.proof_run:PROJECT
root: {root}
shards: {SHARDS}
sources:
  rides: {{files: [rides.csv], received: received_at}}
  quotes: {{files: [quotes-*.csv], received: received_at}}
splits:
  train_until: 2026-01-02T00:00:00Z
  evaluate_until: 2026-01-03T00:00:00Z
  stream_until: {stream_until}
{more}"""


def configuration(folder: Path, root: Path, mode: str = "exact") -> Configuration:
    """Return the configuration of the run whose sources are in ``folder``."""
    return Configuration(
        path=folder / "tidemill.yaml",
        project_name="tests.support.proof_run:PROJECT",
        project=PROJECT,
        root=root,
        shards=SHARDS,
        sources={
            "rides": Source("rides", (str(folder / "rides.csv"),), received="received_at"),
            "quotes": Source("quotes", (str(folder / "quotes-*.csv"),), received="received_at"),
        },
        splits=Splits(START + DAY, EVALUATE_UNTIL, STREAM_UNTIL),
        online_store=SqlitePlace(root / "online.db"),
        stream=StreamOptions(mode=mode),
    )


class FakeScorer:
    """Scores 0.0 in place of a bundle's scorer: the proof is about features."""

    stamps = Stamps("b1", "t1", PROJECT.hash, "CPU", "2.21", False)
    layout = Layout.of(())

    def score(
        self, columns: pa.RecordBatch | Blocks, parts: Sequence[int] | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.zeros(columns.num_rows, np.float32)

    def call(self, columns: pa.RecordBatch | Blocks, parts: Sequence[int] | None = None) -> Outcome:
        scores = pa.RecordBatch.from_pydict({"score": self.score(columns, parts)})
        calls: list[int] = []
        for rows in [columns.num_rows] if parts is None else parts:
            calls += [MAX_ROWS] * (rows // MAX_ROWS) + [rows % MAX_ROWS] * (rows % MAX_ROWS > 0)
        shapes = np.array([padded_rows(rows) for rows in calls], np.int32)
        padded = np.repeat(shapes, np.array(calls, np.int64))
        places = [np.arange(rows, dtype=np.int32) for rows in calls]
        return Outcome(scores, (), padded, np.concatenate([np.zeros(0, np.int32), *places]))


def score_without_models(patch: pytest.MonkeyPatch, scorer: Any = None) -> None:
    """Let stream and proof score by a `FakeScorer`, or another one, in place of a bundle's."""
    patch.setattr(infer, "scorer_of", lambda *_: scorer or FakeScorer())
    patch.setattr(stream_module, "live_bundle", lambda *_: Path(FakeScorer.stamps.bundle))


@dataclass
class Server:
    """Serves the stream's period.

    Attributes:
        config: The configuration; its root holds the log and the handed-over state.
        segment: The segment that publications are of.
        scorer: What scores.
    """

    config: Configuration
    segment: int = 1
    scorer: FakeScorer = dataclasses.field(default_factory=FakeScorer)

    def __post_init__(self) -> None:
        config = self.config
        self.current = config.current.with_next_stream()
        self.states = self.current.build_folder / STATES
        self.options = FeaturizeOptions(
            run="test",
            shards=SHARDS,
            partitions=source_partitions(Log(self.current.build_folder), PROJECT),
            mode=Mode(config.stream.mode),
            handoff=self.states,
        )
        self.joiner = AnswerJoiner(PROJECT, SHARDS, answer_within_us=30 * DAY)
        self.operators: dict[str, ShardOperator] = {}
        self.polls = 0
        handoff = read_record(self.states)
        self.fills = start_over(config, handoff, QuietProgress())
        run = StreamRun.beginning(
            handoff, config.stream.mode, POLL_ROWS, definitions=config.project.spec()
        )
        run.write(self.current.stream_folder)
        write_current(self.current)
        self.database = open_database(config.online_store)

    def serve(self) -> None:
        """Serve everything."""
        for poll in self.polls_of_log():
            self.feed(poll)
        self.end()

    def polls_of_log(self) -> Iterator[Poll]:
        """Yield all polls of the stream's period; the last one ends it."""
        options = ReplayOptions(
            self.current.build_folder,
            EVALUATE_UNTIL,
            STREAM_UNTIL,
            POLL_ROWS,
            requests_first=self.options.mode is Mode.EAGER,
        )
        replay = ReplayLog(PROJECT, options)
        at = replay.start
        while (found := replay.next_poll(at, STREAM_UNTIL, 0)) is not None:
            poll, at = found
            yield poll
        yield replay.final_poll(at, 0)

    def end(self) -> None:
        """Record that the stream has ended."""
        assert not self.joiner.drain()
        stream = self.current.stream_folder
        run = StreamRun.read(stream)
        assert run is not None
        replace(run, ended=True, until_us=STREAM_UNTIL).write(stream)
        self.database.close()

    def feed(self, poll: Poll) -> None:
        """Pass a poll to the operators and the joiner, and write their output."""
        self.polls += 1
        parts: list[Any] = list(request_parts(PROJECT, poll))
        plans = {
            view.name: self.operator(index, 0).plan for index, view in enumerate(PROJECT.views)
        }
        for view, shard, data in shard_poll(PROJECT, plans, SHARDS, poll):
            operator = self.operator(view, shard)
            batches = list(decode_batches(data, operator.event_schema))
            operator = self.cached(view, shard, operator)
            for release in operator.receive(self.delivered(view, shard, batches)):
                parts.append(answer_part(operator, release))
                self.publish(view, shard, release)
                self.witness(operator, release)
        answered, _ = self.joiner.receive(parts)
        for batch in answered:
            rows = predictions(PROJECT, self.scorer, batch, 0)  # type: ignore[arg-type]
            name = f"{rows.column('partition')[0]}-{rows.column('position')[0]}"
            folder = self.current.stream_folder / "predictions"
            write_rows(folder, pa.Table.from_batches([rows]), name)

    def operator(self, view: int, shard: int) -> ShardOperator:
        """Return the operator of a view and shard; it starts from the handed-over state."""
        key = operator_key(PROJECT, view, shard, SHARDS)
        if key not in self.operators:
            self.operators[key] = self.made(make_operator(PROJECT, key, self.options))
            read_handoff(self.states, self.operators[key])
        return self.operators[key]

    def made(self, operator: ShardOperator) -> ShardOperator:
        """Return the operator to use; a mutant has its own."""
        return operator

    def cached(self, view: int, shard: int, operator: ShardOperator) -> ShardOperator:
        """Return what the cache of decoded operators gives; a mutant gives an old one."""
        return operator

    def delivered(
        self, view: int, shard: int, batches: list[SequencedBatch]
    ) -> Iterable[SequencedBatch]:
        """Return what the engine delivers; a mutant loses some."""
        return batches

    def publish(self, view: int, shard: int, release: Release) -> None:
        """Write a release's publications and its frontier to the store."""
        definition = PROJECT.views[view]
        parcels = parcels_of(
            self.fills.fills[definition.name],
            self.fills.writer(definition.name),
            definition,
            named_publications(definition, newest_per_entity(release.publications)),
            shard=shard,
            mark_before=release.mark_before,
            mark=release.mark,
            frontier_us=release.frontier_us,
        )
        self.database.publish(parcels)

    def witness(self, operator: ShardOperator, release: Release) -> None:
        """Write the evidence of a release, and its publications."""
        stream, key = self.current.stream_folder, operator.key
        folder = stream / "releases"
        folder.mkdir(exist_ok=True)
        number = [view.name for view in PROJECT.views].index(key.view)
        with (folder / f"{number}-{key.shard}.jsonl").open("a") as file:
            file.write(release_line(operator, release) + "\n")
        if release.publications.num_rows:
            rows = logged_publications(PROJECT.view(key.view), release.publications)
            name = f"{self.segment:05d}-{key.shard:05d}-{release.number:012d}"
            write_rows(stream / "publications" / key.view, rows, name)


class DropsABatch(Server):
    """Loses the rows of one batch of one shard silently."""

    dropped = 0

    def delivered(
        self, view: int, shard: int, batches: list[SequencedBatch]
    ) -> Iterator[SequencedBatch]:
        for batch in batches:
            if self.polls == 4 and view == 0 and not batch.is_request and batch.rows is not None:
                self.dropped += batch.rows.num_rows
                batch = dataclasses.replace(batch, rows=None)
            yield batch


class DoesNotWaitForStragglers(Server):
    """Takes the highest time it has seen for its watermark, whatever the stream declares."""

    def delivered(
        self, view: int, shard: int, batches: list[SequencedBatch]
    ) -> Iterator[SequencedBatch]:
        for batch in batches:
            source = QUOTES if batch.is_request else RIDES
            watermark = min(batch.watermark_us + source.out_of_orderness_us, STREAM_UNTIL)
            yield dataclasses.replace(batch, watermark_us=watermark)


class _SeesItsOwnInstant(ShardOperator):
    def _taken(
        self, since: int, events: pa.RecordBatch | None, requests: pa.RecordBatch | None, until: int
    ) -> Taken:
        if requests is not None:
            requests = _shifted(requests, "time", 1)
        return super()._taken(since, events, requests, until)

    def receive(self, batches: Iterable[SequencedBatch]) -> list[Release]:
        return [
            dataclasses.replace(release, answers=_shifted(release.answers, "as_of", -1))
            for release in super().receive(batches)
        ]


def _shifted(rows: pa.RecordBatch, column: str, by_us: int) -> pa.RecordBatch:
    place = rows.schema.get_field_index(column)
    times = rows.column(place).to_numpy() + by_us
    return rows.set_column(place, rows.schema.field(place), pa.array(times))


class CountsTheRequestsOwnInstant(Server):
    """Counts ``event_time <= request_time`` where the contract says ``<``."""

    def made(self, operator: ShardOperator) -> ShardOperator:
        fields = {f.name: getattr(operator, f.name) for f in dataclasses.fields(operator)}
        return _SeesItsOwnInstant(**fields)


class ReusesAStaleOperator(Server):
    """Takes an operator out of its cache whose token is three bundles old."""

    old: bytes = b""

    def cached(self, view: int, shard: int, operator: ShardOperator) -> ShardOperator:
        if (view, shard) != (0, 1):
            return operator
        if self.polls == 4:
            self.old = operator.snapshot()
        if self.polls == 7:
            stale = make_operator(PROJECT, operator_key(PROJECT, view, shard, SHARDS), self.options)
            stale.restore(operator.head(), self.old, [])
            stale.expected, stale.watermarks = operator.expected, operator.watermarks
            self.operators[operator_key(PROJECT, view, shard, SHARDS)] = stale
            return stale
        return operator


def rewrite_predictions(root: Path, change: Any) -> None:
    """Rewrite all predictions as ``change`` of their table, in one file."""
    paths = sorted((stream_of(root) / "predictions").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    for path in paths:
        path.unlink()
    write_rows(stream_of(root) / "predictions", change(table), "all")
