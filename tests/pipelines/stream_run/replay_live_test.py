"""`tidemill replay-rejected` of a live stream: mended while it runs and while it is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaProducer

from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject, instant
from tests.support.topics import committed
from tidemill.features.rows import rejected
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.delivery.export_dead_letters import export_dead_letters
from tidemill.pipelines.delivery.outgoing import of_rejected
from tidemill.pipelines.ingest.live_records import read_live_records
from tidemill.pipelines.ingest.replay_rejected import replay
from tidemill.pipelines.run.progress import QuietProgress


def replayed(project: LiveProject, mended: Path | None = None) -> dict[str, Any]:
    """Run `tidemill replay-rejected` in this process."""
    config = load(project.folder / "tidemill.yaml")
    return replay(config, QuietProgress(), mended)


def export(project: LiveProject, name: str) -> list[dict[str, Any]]:
    """Export the rejected records; return those of a source."""
    folder = project.folder / "run" / "rejected" / "export"
    for path in folder.glob("*.jsonl"):
        path.unlink()
    replayed(project)
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def export_from_topic(project: LiveProject, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export from the topic of rejected records; return a source's counts, and its lines by id."""
    (project.folder / "run" / "rejected" / "export" / f"{name}.jsonl").unlink(missing_ok=True)
    config = load(project.folder / "tidemill.yaml")
    counts = export_dead_letters(config, QuietProgress())[name]
    file = counts.pop("file", None)
    found = [] if file is None else map(json.loads, Path(file).read_text().splitlines())
    return counts, {line["record"]: line for line in found}


def send_foreign(project: LiveProject, record: dict[str, Any]) -> None:
    """Write what streams of other roots, and other programs, write to the same topic."""
    producer = KafkaProducer(bootstrap_servers=project.broker.bootstrap)
    topic = project.topics["rejected"]
    other = rejected.batch(
        record["stage"], stream="checks", partition=0, positions=np.array([0]),
        reasons=[record["reason"]], details=["of another root"], origins=[record["origin"]],
        payloads=[b"other"],
    )  # fmt: skip
    try:
        for partition in (0, 1):
            producer.send(topic, b"{}", partition=partition)
            for one in of_rejected(other, "0123456789abcdef/generation/1"):
                headers = [(name, value or b"") for name, value in one.headers]
                producer.send(topic, one.value, one.key, headers, partition)
        producer.flush()
    finally:
        producer.close()


def feed(project: LiveProject, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    path = project.folder / "mended.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return replayed(project, path)


def wait(happened: Callable[[], bool], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_mended_records_of_topics_become_rows_once(tmp_path: Path, broker: TestBroker) -> None:
    project = LiveProject(tmp_path / "project", broker, sinks=True, rejected_bytes=20_000)
    project.run("backfill")
    now = instant(time.time_ns() // 1_000)
    check = {"check": "mended", "asked_at": now, "card": "c-1", "wanted": "a lot"}
    paid = {"payment": "mended", "paid_at": now, "card": "c-1", "amount": 7.0}
    project.produce(30, 10)
    project.send_raw("checks", [json.dumps(check).encode(), b"poison", b"x" * 30_000])
    project.send_raw("payments", [json.dumps(paid).encode()[:-1]], partition=1)
    with project.streaming() as process:
        project.wait_for(10, process)
        found = {line["payload"][:8]: line for line in export(project, "checks")}
        wrong, poison = found['{"check"'], found["poison"]
        assert (wrong["stage"], wrong["reason"]) == ("validate", "wrong_type")
        assert wrong["origin"].startswith(f"{project.topics['checks']}/0@")
        # The topic of rejected records has what a mended line needs.
        dead = {
            dict(one.headers)["record"].decode(): one.value
            for one in committed(project, "rejected")
        }
        assert dead[wrong["record"]] == json.dumps(check).encode()
        assert dead[poison["record"]] == b"poison"
        # It can be exported from there, too; one record is larger than the topic takes.
        send_foreign(project, wrong)
        (large,) = {line["record"] for line in found.values()} - {
            wrong["record"],
            poison["record"],
        }
        assert dead[large] == b""
        assert export_from_topic(project, "checks") == (
            {"exported": 2, "without_payload": 1, "mended_before": 0},
            {one["record"]: one for one in (wrong, poison)},
        )
        mended = {**wrong, "payload": json.dumps({**check, "wanted": 2.0})}
        counts = feed(project, [mended, poison])
        assert counts["checks (topic)"]["stored"] == 1
        assert counts["checks (topic)"]["reasons"] == {"broken_json": 1}
        wait(lambda: "mended" in [row["request_id"] for row in project.predictions()])
        assert feed(project, [mended, poison])["checks (topic)"]["mended_before"] == 1
        (line,) = export(project, "payments")
        feed(project, [{**line, "payload": json.dumps(paid)}])
        process.kill()  # before or after it was taken, but before a savepoint
        process.wait()
    with project.streaming("--resume") as process:
        project.produce(5, 5)
        project.wait_for(16, process)
        wait(lambda: not read_live_records(load(project.folder / "tidemill.yaml")).waiting)
        project.drain(process)
    left = {line["record"]: line for line in export(project, "checks")}
    assert left.keys() == {poison["record"], large}
    assert export(project, "payments") == []
    # What was mended is left out, although the topic has it, and the stream was killed meanwhile.
    assert export_from_topic(project, "checks") == (
        {"exported": 1, "without_payload": 1, "mended_before": 1},
        {poison["record"]: left[poison["record"]]},
    )
    assert export_from_topic(project, "payments") == (
        {"exported": 0, "without_payload": 0, "mended_before": 1},
        {},
    )
    assert feed(project, [mended])["checks (topic)"]["mended_before"] == 1
    answered = [row["request_id"] for row in project.predictions()]
    assert sorted(answered) == sorted(["mended", *(f"checks-{n}" for n in range(15))])
    assert [one.key.decode() for one in committed(project, "predictions")].count("mended") == 1
    assert project.verify() == 64
