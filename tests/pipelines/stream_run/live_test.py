"""`tidemill stream` over topics: drained, resumed, killed; `verify` proves the whole each time."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.stream_outputs import rows_in
from tests.support.topics import committed
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.ingest.committed_offsets import group_of
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.proof_record import ProofRecord
from tidemill.pipelines.run.summary import read_summary


@pytest.mark.parametrize(("engine", "mode"), [("fnapi", "exact"), ("prism", "eager")])
def test_a_live_stream_that_is_drained_killed_and_resumed_is_whole(
    tmp_path: Path, broker: TestBroker, engine: str, mode: str
) -> None:
    project = LiveProject(tmp_path / "project", broker, engine, mode, savepoint_every="2s")
    project.run("backfill")
    project.produce(120, 40)  # before the stream is there
    proof = project.start_proof("--every", "0.5")  # it waits
    with project.streaming() as process:
        project.wait_for(30, process)
        project.produce(80, 20)
        project.wait_for(60, process)
        project.drain(process)
    proof.kill()
    proof.wait()
    assert "SIGTERM" in project.log()
    project.produce(60, 20)
    with project.proving(), project.streaming("--resume") as process:
        for answered in range(85, 100, 5):  # over several savepoints
            project.produce(10, 5)
            project.wait_for(answered, process)
            time.sleep(1)
        process.kill()  # what came after the last savepoint is repeated
        process.wait()
    project.produce(60, 20)
    with project.streaming("--resume") as process:
        project.wait_for(115, process)
        project.drain(process)
    answered = [row["request_id"] for row in project.predictions()]
    assert sorted(answered) == sorted(f"checks-{n}" for n in range(115))
    assert project.verify() == 460
    check_committed(project)
    # The proof has gone on over kills of the stream and of itself.
    line = project.run("verify", "--follow", "--once", "--json").splitlines()[-1]
    standing = json.loads(project.run("status", "--json"))
    assert standing["proof"]["mismatches"] == standing["mismatches"] == 0, line
    assert standing["proof"]["values"] == standing["proof"]["served"]
    record = ProofRecord.read(project.folder / "run")
    assert record is not None
    assert record.counts["predictions"] == 115


def test_kills_that_come_faster_than_savepoints_do_not_keep_a_stream_from_going_on(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker, savepoint_every="10m", sinks=True)
    project.run("backfill")
    for run in range(4):
        project.produce(30, 10)
        with project.streaming(*(["--resume"] if run else [])) as process:
            project.wait_for(10 * run + 5, process)
            deadline = time.monotonic() + 60
            # A run that begins right behind a mark repeats nothing, and need not keep its state.
            while kept_segments(project) < (run + 1) // 2:
                assert time.monotonic() < deadline, project.log()
                time.sleep(0.05)
            if run < 3:
                process.kill()
                process.wait()
                if not run:
                    assert "are of releases that no savepoint holds" in project.run("verify")
            else:
                project.drain(process)
    assert kept_segments(project) in {3, 4}
    answered = [row["request_id"] for row in project.predictions()]
    assert sorted(answered) == sorted(f"checks-{n}" for n in range(40))
    assert project.verify() == 160
    keys = [message.key.decode() for message in committed(project, "predictions")]
    assert sorted(keys) == sorted(answered)


def kept_segments(project: LiveProject) -> int:
    found = Savepoint.read(stream_of(project.folder / "run"))
    return 0 if found is None else found.segment


def check_committed(project: LiveProject) -> None:
    """Check that tools which show lag see none: the stream has kept all that was sent."""
    group = group_of(load(project.folder / "tidemill.yaml"))
    admin = KafkaAdminClient(bootstrap_servers=project.broker.bootstrap)
    try:
        found = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    for kind, sent in project.sent.items():
        committed = [
            at.offset for place, at in found.items() if place.topic == project.topics[kind]
        ]
        assert len(committed) == project.partitions
        assert sum(committed) == sent


def test_messages_that_cannot_be_used_are_rejected_and_stop_nothing(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker)
    project.run("backfill")
    late = {"payment": "late", "card": "c-1", "amount": 1.0, "paid_at": "1999-01-01T00:00:00Z"}
    wrong = [b"{", None, b"\xff", b'{"payment": "p", "paid_at": "soon", "card": "c-1"}', b"[]"]
    project.produce(20, 5)
    with project.streaming() as process:
        project.wait_for(5, process)
        project.send_raw("payments", [*wrong, json.dumps(late).encode()])
        project.send_raw("payments", wrong, partition=1)
        project.produce(20, 5)
        project.wait_for(10, process)
        project.drain(process)
    folder = stream_of(tmp_path / "project" / "run") / "rejected_by_stream"
    rejected = rows_in(folder)
    assert Counter(row["reason"] for row in rejected) == {
        "broken_json": 2, "no_value": 2, "invalid_utf8": 2, "wrong_type": 2, "too_late": 1,
    }  # fmt: skip
    topic = project.topics["payments"]
    for row in rejected:
        # One partition of files comes before those of the topic.
        assert row["origin"] == f"{topic}/{row['partition'] - 1}@{row['position']}"
        assert row["stream"] == "payments"
    assert {row["payload"] for row in rejected} >= {b"{", b"\xff", json.dumps(late).encode()}
    assert project.verify() == 40


def test_a_new_stream_repeats_the_live_rows_and_goes_on_after_a_backfill(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker)
    project.run("backfill")
    project.produce(40, 20)
    with project.streaming() as process:
        project.wait_for(20, process)
        project.drain(process)
    first = {row["request_id"]: row for row in project.predictions()}
    with project.streaming() as process:
        project.wait_for(20, process)
        project.produce(40, 20)
        project.wait_for(40, process)
        project.drain(process)
    again = {row["request_id"]: row for row in project.predictions()}
    values = [name for name in next(iter(first.values())) if "__" in name or name == "request_time"]
    for request, row in first.items():
        assert [row[name] for name in values] == [again[request][name] for name in values]
    project.run("backfill")  # the live rows stay, and the stream goes on
    with project.streaming("--resume") as process:
        project.produce(40, 20)
        project.wait_for(60, process)
        project.drain(process)
    assert read_summary(tmp_path / "project" / "run")["stream"]["late_after_quiet"] == {
        "checks": 0,
        "payments": 0,
    }
    assert project.verify() == 240  # the backfill has removed the first stream


def test_a_new_generation_goes_on_with_the_live_rows_of_the_one_before(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker)
    project.run("backfill")
    project.produce(40, 20)
    project.send_raw("checks", [b"{"])
    with project.streaming() as process:
        project.wait_for(20, process)
        project.drain(process)
    history = project.folder / "payments.csv"
    lines = history.read_text().splitlines()
    history.write_text("\n".join([lines[0], *lines[2:]]) + "\n")  # corrected
    mended = project.folder / "payments-more.csv"
    mended.write_text("\n".join(lines[:2]).replace(",c-", ",d-") + "\n")  # one partition more
    yaml = project.folder / "tidemill.yaml"
    yaml.write_text(yaml.read_text().replace("[payments.csv]", "[payments.csv, payments-more.csv]"))
    for topic in project.topics.values():
        broker.delete_messages(topic)  # the broker has nothing any more of what was read
        broker.add_partitions(topic, 3)
    project.partitions = 3
    assert "a new generation begins" in project.run("backfill")
    with project.streaming() as process:
        project.produce(60, 30)
        project.wait_for(50, process)
        project.drain(process)
    assert {row["request_id"] for row in project.predictions()} == {
        f"checks-{n}" for n in range(50)
    }
    assert project.verify() >= 200
