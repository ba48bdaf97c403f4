"""Following a root's stream: what it waits for, what it goes on from, what it finds meanwhile."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.folders import made_root
from tests.support.memory_topics import PROJECT, TopicProject, instant
from tidemill.features.contract import DAY, MINUTE, SECOND
from tidemill.features.errors import Locked, StateError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.live.live_log import LIVE
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.release_log import read_release_lines
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.paths import STATES
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.proof_record import LOCK, PROOF, Cause, Difference, ProofRecord, Round
from tidemill.pipelines.verify.follow import follow as follow_module
from tidemill.pipelines.verify.follow.follow import FollowOptions, Step, follow
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.files import segment_names
from tidemill.serving.files.locks import lock
from tidemill.serving.files.segment_names import segment_of
from tidemill.serving.generations.current import write_current
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.online.sqlite.scripts import rows_table

ONCE = FollowOptions(once=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TopicProject:
    """A project whose sources go on in topics, with its history."""
    return TopicProject.of_now(tmp_path / "shop", monkeypatch, savepoint_every_us=SECOND // 2)


def once(config: Configuration, **options: Any) -> list[Step]:
    return list(follow(config, replace(ONCE, **options), threading.Event()))


def proven(config: Configuration) -> ProofRecord:
    record = once(config)[-1].record
    assert record is not None
    return record


def faults(record: ProofRecord) -> list[Any]:
    return [one for one in record.differences if Cause(one.cause).is_mismatch]


def test_it_waits_for_what_is_not_there_and_says_so(project: TopicProject) -> None:
    config = project.config()
    assert [step.said for step in once(config)] == [
        "there is no log yet: it waits for `tidemill backfill`"
    ]
    made_root(config.root)
    assert [step.said for step in once(config)] == [
        "the stream has not begun: it waits for `tidemill stream`"
    ]
    assert ProofRecord.read(config.root) is None


def test_two_proofs_of_one_root_do_not_run_at_once(project: TopicProject) -> None:
    config = project.config()
    with (
        lock(config.root / PROOF / LOCK, "prove"),
        pytest.raises(
            Locked, match="only one process at a time may prove the stream while it runs"
        ),
    ):
        once(config)


def savepoints(config: Configuration) -> int:
    found = Savepoint.read(config.current.stream_folder)
    return 0 if found is None else found.segment


def send_until(project: TopicProject, config: Configuration, answered: int) -> None:
    """Send messages of now until so many requests are answered in segments that have ended."""
    deadline = time.monotonic() + 180
    while answers(config) < answered:
        assert time.monotonic() < deadline
        project.send(time.time_ns() // 1_000, steps=8, every_us=10)
        time.sleep(0.2)


def answers(config: Configuration) -> int:
    segments = range(1, savepoints(config) + 1)
    return sum(
        pq.read_metadata(path).num_rows
        for path in (config.current.stream_folder / "predictions").glob("*.parquet")
        if segment_of(path.name) in segments
    )


def test_a_live_stream_is_proven_while_it_runs_and_tampers_are_named(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "_IDLE_S", 0.0)
    # A file that is changed is not joined with others meanwhile.
    monkeypatch.setattr(segment_names, "TOGETHER", 10_000)
    backfill(project.config(), QuietProgress())
    records: list[ProofRecord] = []

    def meanwhile() -> None:
        config = project.config()
        for answered in (1, 30):
            send_until(project, config, answered)
            # Each proof goes on from the record of the one before.
            records.append(proven(config))
        send_until(project, config, 60)
        for folder in ("predictions", "publications"):
            change_a_value(config, folder, records[-1].segment)
        records.append(proven(config))

    project.stream(monkeypatch, meanwhile=meanwhile)
    config = project.config()
    for record in records[:2]:
        assert faults(record) == []
        assert record.values == record.served > 0
    assert records[0].polls < records[1].polls < records[2].polls
    assert records[0].up_to_us < records[1].up_to_us < records[2].up_to_us
    found = {one.what: one for one in faults(records[-1])}
    assert found.keys() == {"value", "publication"}, "\n".join(map(str, faults(records[-1])))
    assert found["value"].id.startswith("q-")
    assert found["value"].served == "999"
    assert all(one.view == "by_card" and one.entity for one in found.values())
    tampered = proven(config)
    assert tampered.counts["compared_again"] > 0
    assert tampered.counts["store_rows"] > 0
    # What was changed is changed for `verify`, too; it finds late values as they are at the end.
    whole = verify(config, QuietProgress(), sample=0)
    assert whole["feature_mismatches"] == 1
    assert tampered.counts["late_values"] >= whole["late_values"] > 0
    assert tampered.counts["predictions"] == whole["predictions"]
    assert tampered.counts["publications"] == whole["publications"]

    change_the_store(config)
    with_store = proven(config)
    assert with_store.mismatches == tampered.mismatches + 1
    assert faults(with_store)[0].what == "store"
    damage_the_live_log(config)
    damaged = proven(config)
    assert damaged.stops
    assert "live" in damaged.stops
    assert faults(damaged)[0].what == "log"
    # It is one fault, however often it is tried.
    assert proven(config).mismatches == damaged.mismatches == with_store.mismatches + 1


def change_a_value(config: Configuration, folder: str, first: int) -> None:
    """Change an output of a segment that is not proven yet, behind the back of Tidemill."""
    segments = range(first, savepoints(config) + 1)
    for path in sorted((config.current.stream_folder / folder).glob("**/*.parquet")):
        table = pq.read_table(path)
        if segment_of(path.name) not in segments or not len(table):
            continue
        place = table.schema.get_field_index("by_card__payments_1h")
        values = table.column(place).to_pylist()
        values[0] = 999
        pq.write_table(
            table.set_column(place, table.schema.field(place), pa.array(values, pa.int64())), path
        )
        return
    raise AssertionError(f"segments {segments} have no {folder}")


def change_the_store(config: Configuration) -> None:
    place: Any = config.online_store
    database = open_database(place)
    (fill,) = (
        one
        for one in database.fills([KeySpace.of(PROJECT.name, PROJECT.views[0])])
        if one.is_current
    )
    database.close()
    rows = rows_table(fill.id)
    with sqlite3.connect(place.path) as sqlite:
        (key, cells), *_ = sqlite.execute(f'SELECT entity_key, cells FROM "{rows}"').fetchall()
        changed = bytes([cells[0] ^ 1]) + cells[1:]
        sqlite.execute(f'UPDATE "{rows}" SET cells = ? WHERE entity_key = ?', (changed, key))
    sqlite.close()


def damage_the_live_log(config: Configuration) -> None:
    (path, *_) = sorted((config.current.folder / LIVE / "rows" / "payments").glob("*.arrow"))
    content = bytearray(path.read_bytes())
    at = content.find(b"p-9")
    content[at : at + 3] = b"p-0"
    path.write_bytes(bytes(content))


def test_an_event_that_came_late_is_not_missed_in_the_store_before_the_frontier_moves(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing but messages moves the frontier.
    project.quiet_us = DAY
    backfill(project.config(), QuietProgress())
    now_us = time.time_ns() // 1_000
    project.send(now_us - MINUTE, steps=40, every_us=10)

    def late() -> None:
        project.send(now_us, steps=40, every_us=10)
        project.wait_until_read(threading.Event())
        row = {
            "payment": "late", "at": instant(now_us - 8 * SECOND), "card": "c-1", "amount": 7.5,
            "shop": None, "online": True,
        }  # fmt: skip
        project.topics.topics["payments"][1].append((now_us + SECOND, json.dumps(row).encode()))

    project.stream(monkeypatch, meanwhile=late)
    config = project.config()
    lines = read_release_lines(config.current.stream_folder, lambda line: line)
    last = {line["shard"]: line for line in lines}
    # It was taken, and waits.
    assert sum(line["seen"]["late"] - line["kernel"]["late"] for line in last.values()) == 1
    record = proven(config)
    assert faults(record) == []
    assert record.counts["store_rows"] > 0
    whole = verify(config, QuietProgress(), sample=0)
    assert whole["store_mismatches"] == 0, whole["first_mismatches"]
    assert whole["store_values"] > 0


def test_a_stream_that_starts_over_is_proven_from_its_beginning(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    backfill(project.config(), QuietProgress())
    project.send(time.time_ns() // 1_000 - MINUTE, steps=20, every_us=SECOND)
    project.stream(monkeypatch)
    config = project.config()
    first = proven(config)
    assert first.stream == 1
    assert first.values > 0
    project.stream(monkeypatch)
    second = proven(project.config())
    assert second.stream == 2
    assert second.values == second.served > 0
    assert faults(second) == []
    kept = list((config.root / PROOF).glob("*-stream-000001.json"))
    assert len(kept) == 1
    # What another definition of a view has made is proven by that one.
    views = [replace(PROJECT.views[0], hop="2m"), *PROJECT.views[1:]]
    other = replace(config, project=replace(PROJECT, views=views))
    (step,) = once(replace(other, pinned=None))
    assert (step.said, step.record.stops) == ("", "")
    run = StreamRun.read(config.current.with_stream(2).stream_folder)
    assert run is not None
    replace(run, definitions=None).write(config.current.with_stream(2).stream_folder)
    (step,) = once(replace(other, pinned=None))
    assert step.said.startswith("the stream is of another definition of by_card: only the code")


def test_a_proof_that_falls_behind_lowers_its_share_and_says_so(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        behind, shares = 3, [1.0]

        def narrow(self, share: float) -> None:
            self.shares.append(share)

        record = ProofRecord("g", 1, "b")

    proof = follow_module._Proof(project.config(), FollowOptions(keeps_up=True), lambda: 0)
    slow: Any = Slow()
    said = []
    for _ in range(6):
        said.append(proof._keep_up(slow))
        slow.behind += 1
    assert said[:3] == ["", "", ""]
    assert said[3].endswith("from now on a share of 0.5 of the entities is proven")
    assert slow.shares == [1.0, 0.5]
    assert slow.record.share == 0.5
    assert slow.record.notes[0].endswith(said[3])
    slow.behind = 0
    assert proof._keep_up(slow) == ""


def test_a_damaged_record_is_named_with_what_to_do(project: TopicProject) -> None:
    config = project.config()
    ProofRecord("g", 1, "b").write(config.root)
    (path,) = (config.root / PROOF).glob("*.json")
    whole = path.read_bytes()
    for content in (whole[:90], b"", whole.replace(b'"polls": 0', b'"polls": 9'), b"[1]"):
        path.write_bytes(content)
        with pytest.raises(StateError, match=r"proof\.json.* remove it: `tidemill verify"):
            once(config)


def test_the_record_is_bounded_and_reads_as_it_was_written(tmp_path: Path) -> None:
    record = ProofRecord("g", 1, "b", reread={"segment": 1})
    for number in range(1_200):
        done = Round(number, number, 0.1, 1.0, 10, 9, 1.0, {Cause.LATE_EVENT: 1}, None)
        fault = Difference(str(number), Cause.LATE_EVENT, "as complete", "value", f"q-{number}")
        record = record.with_round(done, [fault])
    assert (record.values, record.served, record.causes["late event"]) == (10_800, 12_000, 1_200)
    assert len(record.rounds) <= 480
    assert sum(one.values for one in record.rounds) == record.values
    assert [one.id for one in record.differences][:2] == ["q-1199", "q-1198"]
    assert len(record.differences) == 15
    record.write(tmp_path)
    read = ProofRecord.read(tmp_path)
    assert read is not None
    assert json.loads(json.dumps(asdict(read))) == json.loads(json.dumps(asdict(record)))


def test_a_stream_without_a_savepoint_is_waited_for(project: TopicProject) -> None:
    config = project.config()
    backfill(config, QuietProgress())
    current = config.current.with_next_stream()
    handoff = read_record(config.current.build_folder / STATES)
    StreamRun.beginning(handoff, "exact", 10, clock="wall").write(current.stream_folder)
    write_current(current)
    assert [step.said for step in once(project.config())] == [
        "it waits for the first savepoint of the stream"
    ]
