"""A proof that follows a stream: what it finds, round by round, and what it goes on from."""

from __future__ import annotations

import html
import json
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis

from tests.support.folders import build_of, stream_of
from tests.support.proof_run import (
    BY_DRIVER,
    FEATURES,
    PROJECT,
    RIDES,
    STREAM_UNTIL,
    DoesNotWaitForStragglers,
    DropsABatch,
    FakeScorer,
    Server,
    configuration,
    rewrite_predictions,
    score_without_models,
    write_sources,
)
from tests.support.stores import STORES, place_of
from tidemill.features.contract import HOUR
from tidemill.features.errors import DamagedFile, StateMismatch
from tidemill.features.rows import rejected
from tidemill.pipelines.commands.follow_proof import content
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.forget.record import others_that_read
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.report.proof_page import render_proof_page, write_proof_page
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.proof_record import PROOF, Cause, Difference, ProofRecord
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.diagnosis import EARLY
from tidemill.pipelines.verify.findings import excusing
from tidemill.pipelines.verify.follow.follow import FollowOptions, Step, follow
from tidemill.pipelines.verify.follow.follower import Follower
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.redis.rows import row_prefix
from tidemill.serving.online.rows import KeySpace, online_keys
from tidemill.serving.online.sqlite.scripts import rows_table
from tidemill.serving.stores.online_places import SqlitePlace
from tidemill.serving.stores.redis_place import RedisPlace

ROW_HEAD = 28
"""So many bytes of a row in Redis come before its cells."""
FAULTS = {Cause.LOST, Cause.UNEXPLAINED}


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """A run after its backfill."""
    folder = tmp_path_factory.mktemp("proof")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    return config


@pytest.fixture(scope="module")
def served_once(
    backfilled: Configuration, tmp_path_factory: pytest.TempPathFactory
) -> Configuration:
    root = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(backfilled.root, root)
    config = configuration(backfilled.path.parent, root)
    serve(Server(config))
    return config


@pytest.fixture
def served(served_once: Configuration, tmp_path: Path) -> Configuration:
    """A copy of a run without faults, for one test."""
    shutil.copytree(served_once.root, tmp_path / "run")
    return configuration(served_once.path.parent, tmp_path / "run")


@pytest.fixture
def ready(backfilled: Configuration, tmp_path: Path) -> Configuration:
    """A copy of a run that has not served yet."""
    shutil.copytree(backfilled.root, tmp_path / "run")
    return configuration(backfilled.path.parent, tmp_path / "run")


def serve(server: Server) -> None:
    """Serve, and name the outputs as those of a stream's first segment."""
    server.serve()
    name_outputs(server.config, 1)


def name_outputs(config: Configuration, segment: int) -> None:
    """Name the outputs that have no segment yet as those of a segment."""
    folder = stream_of(config.root)
    for path in [*(folder / "predictions").iterdir(), *(folder / "releases").iterdir()]:
        if not path.name.startswith("0000"):
            path.rename(path.with_name(f"{segment:05d}-{path.name}"))


def follower(
    config: Configuration, record: ProofRecord | None = None, share: float = 1.0
) -> Follower:
    config = replace(config, pinned=config.current)
    run = StreamRun.read(config.current.stream_folder)
    assert run is not None
    if record is None:
        record = ProofRecord(config.current.generation, config.current.stream, run.began)
    return Follower(config, run, record, share, open_database(config.online_store))


def proven(config: Configuration, share: float = 1.0) -> ProofRecord:
    """Prove all that is durable, and all rows of the online store."""
    following = follower(config, share=share)
    while following.round() is not None:
        pass
    following.idle()
    return following.record


def faults(record: ProofRecord) -> list[tuple[str, str]]:
    """Return what the faults are of, and why."""
    return [(one.what, one.why) for one in record.differences if one.cause in FAULTS]


@pytest.mark.parametrize("mode", ["exact", "eager"])
def test_it_proves_what_verify_proves(mode: str, backfilled: Configuration, tmp_path: Path) -> None:
    shutil.copytree(backfilled.root, tmp_path / "run")
    config = configuration(backfilled.path.parent, tmp_path / "run", mode=mode)
    Server(config).serve()
    whole = verify(config, QuietProgress(), sample=0)
    folder = stream_of(config.root)
    for path in [*(folder / "predictions").iterdir(), *(folder / "releases").iterdir()]:
        path.rename(path.with_name(f"00001-{path.name}"))
    record = proven(config)
    assert faults(record) == []
    assert record.mismatches == whole["mismatches"] == 0
    assert record.counts["late_values"] == whole["late_values"] > 0
    assert record.counts["predictions"] == whole["predictions"]
    assert record.counts["publications"] == whole["publications"]
    assert record.counts["scores"] == whole["scores"]
    assert record.counts["releases"] == whole["releases"]
    # Each row of the store is read twice: in the round, and while nothing is new.
    assert record.counts["store_values"] == 2 * whole["store_values"]
    columns = {view.name: len(view.columns) for view in PROJECT.views}
    of_publications = sum(
        columns[path.parent.name] * pq.read_metadata(path).num_rows
        for path in (folder / "publications").glob("*/*.parquet")
    )
    assert record.values == record.served == whole["values"] + of_publications
    late = next(one for one in record.differences if one.cause == Cause.LATE_EVENT)
    assert late.events
    assert late.served != late.recomputed
    assert record.up_to_us == STREAM_UNTIL


def test_a_request_that_came_late_is_a_cause_of_its_own(served: Configuration) -> None:
    record = proven(served)
    found = [one for one in record.differences if one.cause == Cause.LATE_REQUEST]
    assert found
    for one in found:
        assert one.verdict == "as complete"
        assert one.entity
        assert one.why.startswith("the request of 2026-01-0")


def test_rounds_prove_what_one_round_over_all_proves(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(backfilled.root, tmp_path / "run")
    config = configuration(backfilled.path.parent, tmp_path / "run")
    config = replace(config, stream=replace(config.stream, poll_rows=50))
    going_on: Follower | None = None
    again: Follower | None = None
    for until_us in (STREAM_UNTIL - 16 * HOUR, STREAM_UNTIL - 8 * HOUR, None):
        stream(config, QuietProgress(), until_us=until_us, resume=going_on is not None)
        if going_on is None or again is None:
            going_on = again = follower(config)
        else:
            # One that goes on from the record of the last round, as after a kill.
            again = follower(config, again.record)
        for one in {going_on, again}:
            assert one.round() is not None
            assert one.round() is None
    whole = proven(config)
    assert going_on is not None
    assert again is not None
    for record in (going_on.record, again.record):
        assert record.mismatches == 0, faults(record)
        assert (record.values, record.served, record.polls) == (
            whole.values,
            whole.served,
            whole.polls,
        )
        assert record.counts["late_values"] == whole.counts["late_values"]
        assert record.causes[Cause.LATE_REQUEST] == whole.causes[Cause.LATE_REQUEST]
        assert len(record.rounds) == 3


def test_a_share_takes_all_values_of_the_entities_that_it_chooses(served: Configuration) -> None:
    some, most, whole = (proven(served, share) for share in (0.3, 0.7, 1.0))
    assert some.served == most.served == whole.served == whole.values
    assert 0 < some.values < most.values < whole.values
    assert some.mismatches == most.mismatches == 0
    assert some.counts["store_values"] < whole.counts["store_values"]


def test_a_smaller_share_goes_on_where_a_larger_one_was(served: Configuration) -> None:
    following = follower(served)
    following.narrow(0.3)
    assert following.round() is not None
    assert following.record.values == proven(served, 0.3).values
    assert following.record.mismatches == 0


@pytest.mark.parametrize(
    ("server", "cause", "begins"),
    [
        (DropsABatch, Cause.LOST, "lost: event"),
        (DoesNotWaitForStragglers, Cause.UNEXPLAINED, EARLY),
    ],
)
def test_a_fault_of_the_engine_is_found_with_its_events(
    server: type[Server], cause: Cause, begins: str, ready: Configuration
) -> None:
    serve(server(ready))
    record = proven(ready)
    found = [one for one in record.differences if one.what == "value" and one.cause == cause]
    assert record.causes[cause] > 0
    assert any(one.why.startswith(begins) for one in found)
    assert any(one.events for one in found)


def change(config: Configuration, column: str, row: int, value: Any) -> None:
    def changed(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        values = table.column(place).to_pylist()
        values[row] = value
        new = pa.array(values, table.schema.field(place).type)
        return table.set_column(place, table.schema.field(place), new)

    folder = stream_of(config.root)
    rewrite_predictions(config.root, changed)
    for path in (folder / "predictions").iterdir():
        if not path.name.startswith("00001-"):
            path.rename(path.with_name(f"00001-{path.name}"))


def drop_first(config: Configuration) -> dict[str, Any]:
    """Remove the first prediction; return it."""
    (path, *_) = sorted((stream_of(config.root) / "predictions").iterdir())
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
    return row


def test_a_served_value_that_was_changed_is_named(served: Configuration) -> None:
    change(served, "by_driver__rides_6h", 3, 77)
    record = proven(served)
    assert record.mismatches == 1
    (found,) = [one for one in record.differences if one.cause in FAULTS]
    assert (found.what, found.view, found.feature) == ("value", "by_driver", "by_driver__rides_6h")
    assert found.served == "77"
    assert found.recomputed != "77"
    assert found.verdict == "as seen"
    assert found.entity


def test_a_score_that_was_changed_is_named(served: Configuration) -> None:
    change(served, "score", 3, 0.5)
    record = proven(served)
    assert record.mismatches == 1
    assert [what for what, _ in faults(record)] == ["score"]


def test_a_prediction_that_is_gone_was_lost_by_the_engine(served: Configuration) -> None:
    drop_first(served)
    record = proven(served)
    assert record.causes[Cause.LOST] == record.mismatches == FEATURES
    assert faults(record) == [("lost", "the releases have its answer")]


def test_a_record_that_says_that_nobody_answered_is_not_believed(served: Configuration) -> None:
    row = drop_first(served)
    record = rejected.batch(
        rejected.Stage.ANSWER,
        stream="quotes",
        partition=row["partition"],
        positions=np.array([row["position"]]),
        reasons=[rejected.Reason.NO_ANSWER],
        details=["views by_zone did not answer in time"],
        origins=["quotes/0:0"],
        payloads=[b"{}"],
    )
    folder = stream_of(served.root) / "rejected_by_stream"
    write_rows(folder, pa.Table.from_batches([record]), "00001-one")
    found = proven(served)
    assert found.causes.get(Cause.EXPIRED, 0) == 0
    assert {what for what, _ in faults(found)} == {"lost", "rejected"}


def of_releases(config: Configuration, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = stream_of(config.root) / "releases" / "00001-1-0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_release_that_left_no_evidence_was_lost_by_the_engine(served: Configuration) -> None:
    of_releases(served, lambda lines: lines.pop(2))
    record = proven(served)
    assert ("release", "the engine lost it, or it was removed: every step leaves evidence") in (
        faults(record)
    )


def test_a_release_whose_frontier_was_changed_is_named(served: Configuration) -> None:
    of_releases(served, lambda lines: lines[2].update(frontier_us=lines[2]["frontier_us"] + 1))
    assert ("release", "the mark is not that of its positions and frontier") in faults(
        proven(served)
    )


def test_a_publication_that_was_changed_is_named(served: Configuration) -> None:
    folder = stream_of(served.root) / "publications" / "by_driver"
    path = sorted(folder.iterdir())[2]
    table = pq.read_table(path)
    place = table.schema.get_field_index("by_driver__rides_6h")
    more = pc.add(table.column(place), 1)
    pq.write_table(table.set_column(place, table.schema.field(place), more), path)
    record = proven(served)
    assert record.mismatches == len(table)
    assert {what for what, _ in faults(record)} == {"publication"}
    path.unlink()
    record = proven(served)
    assert faults(record) == [("publication", "it is gone")]
    assert record.causes[Cause.LOST] == 1


@pytest.fixture(params=STORES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Configuration]:
    """A run without faults, with each of the stores."""
    if request.param == "sqlite":
        yield request.getfixturevalue("served")
        return
    with place_of("redis", tmp_path) as place:
        config = replace(request.getfixturevalue("ready"), online_store=place)
        serve(Server(config))
        yield config


def rows_of_fill(config: Configuration) -> Any:
    """Return what reads and writes the rows of a view behind the back of Tidemill."""
    database = open_database(config.online_store)
    (fill,) = (
        one for one in database.fills([KeySpace.of(PROJECT.name, BY_DRIVER)]) if one.is_current
    )
    database.close()
    place = config.online_store
    if isinstance(place, RedisPlace):
        return RedisRows(redis.Redis(host=place.host, port=place.port), row_prefix(fill.id))
    assert isinstance(place, SqlitePlace)
    return SqliteRows(place.path, rows_table(fill.id))


@dataclass
class RedisRows:
    client: Any
    prefix: bytes

    def cells(self, key: bytes) -> bytes:
        found: bytes = self.client.get(self.prefix + key)
        return found[ROW_HEAD:]

    def change(self, key: bytes, cells: bytes) -> None:
        found: bytes = self.client.get(self.prefix + key)
        self.client.set(self.prefix + key, found[:ROW_HEAD] + cells)

    def remove(self, key: bytes) -> None:
        assert self.client.delete(self.prefix + key) == 1


@dataclass
class SqliteRows:
    path: Path
    table: str

    def cells(self, key: bytes) -> bytes:
        return bytes(self._run("SELECT cells FROM {} WHERE entity_key = ?", key)[0][0])

    def change(self, key: bytes, cells: bytes) -> None:
        self._run("UPDATE {} SET cells = ? WHERE entity_key = ?", cells, key)

    def remove(self, key: bytes) -> None:
        self._run("DELETE FROM {} WHERE entity_key = ?", key)

    def _run(self, statement: str, *values: bytes) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as sqlite, sqlite:
            return sqlite.execute(statement.format(f'"{self.table}"'), values).fetchall()


def test_a_value_of_the_online_store_that_is_changed_meanwhile_is_named(
    stored: Configuration,
) -> None:
    following = follower(stored)
    while following.round() is not None:
        pass
    following.idle()
    assert following.record.mismatches == 0
    assert following.record.counts["store_rows"] > 0
    (key,) = online_keys("driver", pa.array(["d3"]))
    (other,) = online_keys("driver", pa.array(["d4"]))
    rows = rows_of_fill(stored)
    rows.change(key, rows.cells(other))
    assert following.idle() is not None
    found = [one for one in following.record.differences if one.cause in FAULTS]
    assert found
    assert {(one.what, one.view, one.entity) for one in found} == {("store", "by_driver", "d3")}
    # It is read again and again, and is one fault.
    mismatches = following.record.mismatches
    assert following.idle() is None
    assert following.record.mismatches == mismatches == len(found)


def test_a_row_that_is_gone_from_the_online_store_is_named(stored: Configuration) -> None:
    (key,) = online_keys("driver", pa.array(["d3"]))
    rows_of_fill(stored).remove(key)
    record = proven(stored)
    assert {(one.what, one.entity, one.served) for one in record.differences
            if one.cause in FAULTS} == {("store", "d3", "NOT_FOUND")}  # fmt: skip


def test_a_damaged_block_of_the_log_is_an_error(served: Configuration) -> None:
    following = follower(served)
    (path,) = (build_of(served.root) / "log" / "rides").glob("*.arrow")
    content = bytearray(path.read_bytes())
    at = content.find(b"r100")
    content[at : at + 4] = b"r999"
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedFile, match="rides"):
        following.round()


def test_a_log_that_was_replaced_since_it_was_proven_is_refused(served: Configuration) -> None:
    record = proven(served)
    log = Log(build_of(served.root))
    table = log.read("rides", 0)
    received = table.column("_received").to_numpy()
    place = table.schema.get_field_index("fare")
    fares = pc.add(table["fare"], 1e-9)
    log.write(RIDES, 0, table.set_column(place, "fare", fares), received)
    with pytest.raises(StateMismatch, match="has other rows than were proven"):
        follower(served, record)


def test_an_entity_that_is_forgotten_is_forgotten_by_the_proof(served: Configuration) -> None:
    record = proven(served)
    record.write(served.root)
    page = write_proof_page("rides", served.root, record)
    assert b"d3" in page.read_bytes()
    forget(served, "driver", "d3", QuietProgress())
    assert not list((served.root / PROOF).glob("proof.[!l]*"))
    config = replace(served, pinned=None)
    with excusing(others_that_read(served.root)):
        again = proven(config)
    assert faults(again) == []
    assert 0 < again.values < record.values
    assert not any(one.entity == "d3" for one in again.differences)


class SlowStore(Server):
    """The online store takes what one shard of a view writes later than the rest.

    Attributes:
        is_slow: Whether it does so now.
        held: What it has not taken yet.
    """

    is_slow = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.held: list[Release] = []

    def publish(self, view: int, shard: int, release: Release) -> None:
        if self.is_slow and (view, shard) == (0, 1):
            self.held.append(release)
        else:
            super().publish(view, shard, release)

    def catch_up(self) -> None:
        self.is_slow = False
        for release in self.held:
            super().publish(0, 1, release)


def begun(ready: Configuration) -> tuple[SlowStore, list[Poll]]:
    """Serve but for the last polls, of which some requests wait; a first savepoint ends there."""
    server = SlowStore(ready)
    polls = list(server.polls_of_log())
    for poll in polls[:-4]:
        server.feed(poll)
    name_outputs(ready, 1)
    Savepoint(1, 0, server.polls, "states").write(stream_of(ready.root))
    return server, polls[-4:]


def test_rows_of_a_shard_that_falls_behind_are_expired_until_it_has_caught_up(
    ready: Configuration,
) -> None:
    server, polls = begun(ready)
    following = follower(ready)
    assert following.round() is not None
    assert following.record.mismatches == 0
    assert following.record.causes.get(Cause.EXPIRED, 0) == 0
    server.is_slow, server.segment = True, 2
    for poll in polls:
        server.feed(poll)
    assert following.idle() is not None
    record = following.record
    found = [one for one in record.differences if one.cause == Cause.EXPIRED]
    assert found
    assert record.mismatches == 0
    for one in found:
        assert (one.what, one.view, one.served, one.recomputed) == (
            "store", "by_driver", "OUTSIDE_MAX_AGE", "PRESENT",
        )  # fmt: skip
        assert one.entity in {f"d{n}" for n in range(6)}
        assert one.as_of.startswith("2026-01-03T")
        assert re.fullmatch(
            r"shard 1, which has the row, is [\d,]+\.\d s behind the furthest shard of by_driver, "
            r"and max_staleness is 900 s",
            one.why,
        )
    assert record.causes[Cause.EXPIRED] == len(found) * len(BY_DRIVER.columns)
    check_is_shown(record, found[0])
    # It is said once for a row as of one frontier, and no more when the shard has caught up.
    assert following.idle() is None
    server.catch_up()
    server.end()
    name_outputs(ready, 2)
    assert following.round() is not None
    assert following.idle() is None
    assert following.record.causes[Cause.EXPIRED] == record.causes[Cause.EXPIRED]
    assert following.record.mismatches == 0, faults(following.record)


def check_is_shown(record: ProofRecord, one: Difference) -> None:
    """Check that a difference is in the page and in the JSON of its round, with what it names."""
    page = html.unescape(render_proof_page("rides", record))
    step = Step(record, record.rounds[-1], found=record.differences)
    shown = json.loads(json.dumps(content(record, step)))["round"]["differences"]
    assert asdict(one) | {"events": list(one.events)} in shown
    for text in (one.cause, one.id, one.entity, one.why, one.served, one.recomputed, *one.events):
        assert text in page


class Upgraded(FakeScorer):
    """The same bundle in another TensorFlow, on another device."""

    stamps = replace(FakeScorer.stamps, device="GPU", tensorflow="2.22")

    def score(self, columns: Any, parts: Any = None) -> Any:
        return super().score(columns) + np.float32(0.5**20)


def test_scores_of_another_tensorflow_are_a_cause_of_their_own(
    served: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_without_models(monkeypatch, Upgraded())
    (*_, step) = follow(served, FollowOptions(once=True), threading.Event())
    record = step.record
    assert record is not None
    assert record.mismatches == 0
    assert record.causes[Cause.VERSION] == record.counts["scores"] > 100
    found = [one for one in step.found if one.cause == Cause.VERSION]
    assert len(found) == 10
    for one in found:
        assert (one.what, one.served, one.recomputed) == (
            "score",
            "0.0",
            "9.5367431640625e-07",
        )
        assert one.why == (
            "bundle b1 scored it with TensorFlow 2.21 on CPU, and this process scores with "
            "TensorFlow 2.22 on GPU"
        )
        (event,) = one.events
        assert re.fullmatch(rf"{one.id} \(quotes/\d:\d+\)", event)
    check_is_shown(record, found[0])


def test_scores_that_differ_by_more_than_devices_do_are_no_version(
    served: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(served, "score", 3, 0.5)
    score_without_models(monkeypatch, Upgraded())
    record = proven(served)
    assert [what for what, _ in faults(record)] == ["score"]
    assert record.causes[Cause.VERSION] == record.counts["scores"] - 1


def test_a_request_that_was_given_up_is_lost_by_the_engine_also_before_all_have_passed_it(
    ready: Configuration,
) -> None:
    begun(ready)
    waiting = follower(ready)
    assert waiting.round() is not None
    (partition, position, _), *_ = waiting._asked.places()
    record = rejected.batch(
        rejected.Stage.ANSWER,
        stream="quotes",
        partition=partition,
        positions=np.array([position]),
        reasons=[rejected.Reason.NO_ANSWER],
        details=["views by_zone did not answer in time"],
        origins=[f"quotes/{partition}:{position}"],
        payloads=[b"{}"],
    )
    folder = stream_of(ready.root) / "rejected_by_stream"
    write_rows(folder, pa.Table.from_batches([record]), "00001-one")
    found = proven(ready)
    assert found.causes == {**waiting.record.causes, Cause.LOST: 1}
    (one,) = [one for one in found.differences if one.cause in FAULTS]
    assert one.what == "rejected"
    assert one.why.endswith("has not answered it: views by_zone did not answer in time")
    (event,) = one.events
    assert re.fullmatch(rf"q\d+ \(quotes/{partition}:{position}\)", event)
