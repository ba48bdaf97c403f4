"""`tidemill stream` to topics: each prediction once, whatever is killed, and `verify` proves it."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support import fork_server
from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject, Program
from tests.support.stream_outputs import rows_in
from tests.support.topics import committed
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.stream.output_folders import STAMPS

EXACT: Final = {
    "lost": 0, "doubled": 0, "changed": 0, "extra": 0, "not_comparable": 0, "scored_otherwise": 0,
    "shortened": 0,
}  # fmt: skip


def ids(project: LiveProject) -> Counter[str]:
    """Count the messages of each request."""
    return Counter(record.key.decode() for record in committed(project, "predictions"))


def once(project: LiveProject) -> Counter[str]:
    """Return one message for each request that was sent."""
    return Counter(f"checks-{n}" for n in range(project.sent["checks"]))


def wait_for_messages(project: LiveProject, count: int, process: Program) -> None:
    """Wait until so many predictions are committed."""
    deadline = time.monotonic() + 180
    while len(committed(project, "predictions")) < count:
        assert process.poll() is None, project.log()
        assert time.monotonic() < deadline, project.log()


def delivered(project: LiveProject, name: str) -> dict[str, int]:
    """Return the figures of the last stream."""
    figures: dict[str, int] = read_summary(project.folder / "run")["stream"]["delivered"][name]
    return figures


def check_rejected(project: LiveProject) -> None:
    """Check that the messages of rejected records are those of the files."""
    names = ("stage", "reason", "detail", "stream", "origin", "partition", "position")
    folder = stream_of(project.folder / "run") / "rejected_by_stream"
    records = rows_in(folder)
    found = Counter(
        (message.value, *(dict(message.headers)[name].decode() for name in names))
        for message in committed(project, "rejected")
    )
    assert found == Counter(
        (row["payload"], *(str(row[name]) for name in names)) for row in records
    )
    assert found


def test_a_stream_whose_processes_and_broker_are_killed_loses_and_doubles_nothing(
    tmp_path: Path, own_broker: Callable[..., TestBroker]
) -> None:
    broker = own_broker()
    broker.start()
    project = LiveProject(tmp_path / "project", broker, sinks=True, savepoint_every="4s")
    project.run("backfill")
    wrong, moments = [b"?", None, b"{"], random.Random(3)
    for options in ([], ["--resume"]):
        answered = sum(ids(project).values())
        with project.streaming(*options) as process:
            project.send_raw("payments", wrong)
            project.produce(20, 20)
            wait_for_messages(project, answered + 1, process)
            for _ in range(3):
                project.produce(10, 20)
                time.sleep(moments.uniform(0, 0.2))
            process.kill()
            process.wait()
    answered = sum(ids(project).values())
    project.produce(10, 20)
    with project.streaming("--resume") as process:
        wait_for_messages(project, answered + 1, process)
        project.produce(40, 200)
        broker.kill()
        time.sleep(1)
        broker.start()
        project.produce(40, 20)
        project.wait_for(project.sent["checks"], process)
        project.drain(process)
    for name in ("predictions", "rejected"):
        figures = delivered(project, name)
        # What came behind the last savepoint is compared; verify compares all.
        assert figures["written"] + figures["already_there"] >= figures["compared"]
        assert figures.items() >= EXACT.items()
    assert ids(project) == once(project)
    check_rejected(project)
    check_values(project)
    assert project.verify() == 4 * project.sent["checks"]
    proven = read_summary(project.folder / "run")["verify"]
    assert proven["delivered_compared"] == project.sent["checks"] + 2 * len(wrong)
    assert proven["delivery_mismatches"] == 0


def test_a_stream_on_prism_that_is_killed_writes_each_once(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker, "prism", "eager", sinks=True)
    project.run("backfill")
    project.produce(60, 30)
    with project.streaming() as process:
        wait_for_messages(project, 1, process)
        project.produce(60, 60)
        wait_for_messages(project, 31, process)
        process.kill()
        process.wait()
    project.produce(10, 10)
    with project.streaming("--resume") as process:
        project.wait_for(100, process)
        project.drain(process)
    figures = delivered(project, "predictions")
    assert figures["already_there"] > 0
    # What came behind the savepoint of the resumed stream is compared; verify compares all.
    assert figures.items() >= EXACT.items()
    assert ids(project) == once(project)
    assert project.verify() == 400
    proven = read_summary(project.folder / "run")["verify"]
    assert (proven["delivered_compared"], proven["delivery_mismatches"]) == (100, 0)


def check_values(project: LiveProject) -> None:
    """Check that messages say bit for bit what the files say, but for when a repeat was made."""
    rows = {row["request_id"]: row for row in project.predictions()}
    for message in committed(project, "predictions"):
        row = rows[message.key.decode()]
        value, headers = json.loads(message.value), dict(message.headers)
        assert list(value) == list(row)
        assert message.timestamp == value["created_us"] // 1_000
        # A poll that is sent again, once it is sealed, has the time of that.
        assert value["sent_us"] <= value["created_us"]
        for stamp in STAMPS:
            assert value.pop(stamp) <= row.pop(stamp), stamp
        for name, field in row.items():
            right = field.isoformat() if hasattr(field, "isoformat") else field
            found = value[name].replace("Z", "+00:00") if name == "request_time" else value[name]
            assert (type(found), repr(found)) == (type(right), repr(right)), name
        assert headers["partition"] == str(row["partition"]).encode()
        assert headers["position"] == str(row["position"]).encode()
        assert headers["features_hash"] == row["spec_hash"].encode()
        assert headers["tidemill-kind"] == b"prediction"
        assert headers["tidemill-stream"].count(b"/") == 2


def test_a_topic_that_is_read_is_not_written_to_by_another_address_of_its_broker(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker)
    address, topic = broker.bootstrap.replace("127.0.0.1", "localhost"), project.topics["checks"]
    with (project.folder / "tidemill.yaml").open("a") as file:
        file.write(f"predictions: {{kafka: {{bootstrap: '{address}', topic: {topic}}}}}\n")
    project.run("backfill")
    ended = fork_server.run_command(("stream",), project.folder)
    assert ended.status == 1
    assert f"{topic!r} is the topic of the source 'checks'" in ended.printed
    assert "by another address of its cluster" in ended.printed


def test_the_stream_of_a_new_generation_leaves_the_one_before_alone_while_it_runs(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker, sinks=True, savepoint_every="2s")
    project.run("backfill")
    with project.streaming() as process:
        project.produce(10, 10)
        project.wait_for(10, process)
        running = stream_of(project.folder / "run")
        history = project.folder / "payments.csv"
        history.write_text(history.read_text().replace(",c-1,", ",c-2,", 1))
        assert "a new generation begins" in project.run("backfill")
        refused = fork_server.run_command(("stream",), project.folder)
        assert refused.status == 1
        assert "the stream of the generation before, which runs on; end it first" in refused.printed
        # It has not fenced the writers of the other: that goes on.
        project.produce(10, 10)
        wait_for_messages(project, 20, process)
        project.drain(process)
    assert len(rows_in(running / "predictions")) == 20
    with project.streaming() as process:
        project.produce(10, 10)
        project.wait_for(10, process)
        project.drain(process)
    project.verify()
