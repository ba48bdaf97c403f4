"""Topics that get more partitions while a stream reads them, while it is dead, and for a build."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.topics import committed
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.ingest.committed_offsets import group_of


def grow(project: LiveProject, partitions: int) -> None:
    """Give all topics of sources so many partitions in all, and send to them from now on."""
    for name in ("payments", "checks"):
        project.broker.add_partitions(project.topics[name], partitions)
    project.partitions = partitions


def wait_until_said(project: LiveProject, partitions: int) -> None:
    """Wait until a stream reads all partitions of both topics."""
    deadline = time.monotonic() + 60
    while project.log().count(f"has {partitions} partitions now") < 2:
        assert time.monotonic() < deadline, project.log()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("engine", "mode", "client"),
    [("fnapi", "exact", "confluent-kafka"), ("prism", "eager", "")],
)
def test_a_stream_reads_the_partitions_that_its_topics_get(
    tmp_path: Path, broker: TestBroker, engine: str, mode: str, client: str
) -> None:
    project = LiveProject(
        tmp_path / "project",
        broker,
        engine,
        mode,
        savepoint_every="2s",
        sinks=True,
        client=client,
    )
    project.run("backfill")
    project.produce(60, 20)
    with project.proving("--every", "0.5"), project.streaming() as process:
        project.wait_for(10, process)
        grow(project, 5)
        wait_until_said(project, 5)
        project.produce(100, 40)
        project.wait_for(50, process)
        process.kill()
        process.wait()
        grow(project, 6)
        project.produce(60, 20)
        with project.streaming("--resume") as resumed:
            project.produce(20, 10)
            project.send_raw("payments", [b"no payment"], partition=5)
            project.wait_for(80, resumed)
            standing = json.loads(project.run("status", "--json"))
            project.drain(resumed)
    numbers = {one["source"]: len(one["partitions"]) for one in standing["sources"]}
    assert numbers == {"payments": 6, "checks": 6}
    answered = sorted(row["request_id"] for row in project.predictions())
    assert answered == sorted({*answered})
    assert project.verify() >= 320
    (rejected,) = committed(project, "rejected")
    origin = dict(rejected.headers)["origin"].decode()
    assert origin.startswith(f"{project.topics['payments']}/5@")
    group = group_of(load(project.folder / "tidemill.yaml"))
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        noted = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    sent = {**project.sent, "payments": project.sent["payments"] + 1}
    for name, count in sent.items():
        offsets = [at.offset for place, at in noted.items() if place.topic == project.topics[name]]
        assert (len(offsets), sum(offsets)) == (6, count)


def test_a_new_generation_has_a_partition_for_each_of_a_grown_topic(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker)
    project.run("backfill")
    with project.streaming() as process:
        project.produce(20, 10)
        project.wait_for(5, process)
        grow(project, 4)
        wait_until_said(project, 4)
        project.produce(40, 20)
        project.wait_for(25, process)
        project.drain(process)
    assert project.verify() >= 100
    grow(project, 5)
    project.produce(20, 10)  # nobody has read these
    history = project.folder / "payments.csv"
    lines = history.read_text().splitlines()
    history.write_text("\n".join([lines[0], *lines[2:]]) + "\n")  # corrected
    assert "a new generation begins" in project.run("backfill")
    with project.streaming() as process:
        project.produce(20, 10)
        project.wait_for(45, process)
        grow(project, 7)
        wait_until_said(project, 7)
        project.produce(20, 10)
        project.wait_for(55, process)
        project.drain(process)
    assert {f"checks-{n}" for n in range(40)} <= {
        row["request_id"] for row in project.predictions()
    }
    assert project.verify() >= 220
