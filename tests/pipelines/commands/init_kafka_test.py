"""`tidemill init --kafka`: what its README says to run, run as written against a real broker.

But for `tidemill train`, which knows nothing of topics and takes half a minute: the test takes the
model out of the project.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.support.folders import stream_of
from tests.support.markdown import ROOT
from tests.support.stream_outputs import rows_in
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.local_servers import LocalServers
from tidemill.pipelines.servers.ports import ReservedPort

MAIN = "import sys; from tidemill.pipelines.commands.cli import main; sys.exit(main())"


class Shell:
    """Runs the commands of a README in the folder of its project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = {"tidemill": [sys.executable, "-c", MAIN], "python": [sys.executable]}[words[0]]
        return subprocess.Popen(
            [*command, *words[1:]],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, status: int = 0) -> str:
        process = self.start(*words)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == status, said
        return said


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with ReservedPort(HOST) as reserved:
        folder = write_project("tiny_shop", tmp_path, f"{HOST}:{reserved.port}")
        yield Shell(folder)
        LocalServers(folder / ".tidemill" / "servers").remove()


def live_rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "live" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def committed(address: str, topic: str) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=address, isolation_level="read_committed")
    partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends, found = consumer.end_offsets(partitions), []
    while any(consumer.position(one) < end for one, end in ends.items()):
        found += [message for some in consumer.poll(1_000).values() for message in some]
    consumer.close()
    return found


def test_the_readme_works_as_written(shell: Shell) -> None:
    folder = shell.folder
    address = load(folder / "tidemill.yaml").sources["orders"].kafka.bootstrap[0]  # type: ignore[union-attr]
    block = re.search(r"```bash\n(tidemill up.*?)```", (folder / "README.md").read_text(), re.S)
    assert block is not None
    lines = [line.split("#")[0].split() for line in block[1].splitlines()]
    assert lines == [
        ["tidemill", "up"],
        ["tidemill", "backfill"],
        ["tidemill", "train"],
        ["python", "produce.py", "&"],
        ["tidemill", "stream"],
        ["tidemill", "verify"],
    ]
    up = shell.run("tidemill", "up", "--no-redis")  # the suite has a Redis of its own
    assert f"bootstrap servers {address}" in up
    assert "made the topics tiny_shop-orders, tiny_shop-settlements, tiny_shop-checkouts" in up
    definitions = folder / "project.py"
    without = re.sub(
        r"    (preprocessing_fn|model)=.*\n|from model import .*\n", "", definitions.read_text()
    )
    definitions.write_text(without)
    shell.run("tidemill", "backfill")
    wanted = {row["checkout_id"] for row in live_rows(folder, "checkouts")}
    stream = shell.start("tidemill", "stream")
    assert re.match(r"451 messages sent", shell.run("python", "produce.py", "--seconds", "3"))
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send("tiny_shop-orders", b"this is no order").get(timeout=60)
    producer.close()
    deadline_s = time.monotonic() + 90
    while answered(folder) < len(wanted):
        assert stream.poll() is None, stream.communicate()[0]
        assert time.monotonic() < deadline_s, (answered(folder), len(wanted))
        time.sleep(0.2)
    stream.send_signal(signal.SIGTERM)
    said, _ = stream.communicate(timeout=120)
    assert stream.returncode == 0, said
    assert re.search(r"^0 mismatches in [0-9,]+ values$", shell.run("tidemill", "verify"), re.M)

    predictions = committed(address, "tiny_shop-predictions")
    assert Counter(one.key.decode() for one in predictions) == Counter(wanted)
    rates = [
        json.loads(one.value)["product_refunds__product_refund_rate_28d"] for one in predictions
    ]
    assert len(set(rates)) > 50
    (rejected,) = committed(address, "tiny_shop-rejected")
    assert rejected.value == b"this is no order"
    assert ("reason", b"broken_json") in rejected.headers
    assert "k-1100" in shell.run("tidemill", "explain", "k-1100")


def answered(folder: Path) -> int:
    if not (folder / "run" / "CURRENT").exists():
        return 0
    return len(rows_in(stream_of(folder / "run") / "predictions"))


def test_a_port_of_another_program_is_explained_with_what_to_change(shell: Shell) -> None:
    yaml = shell.folder / "tidemill.yaml"
    with ReservedPort(HOST) as reserved:
        reserved._socket.listen()
        yaml.write_text(re.sub(r"127\.0\.0\.1:\d+", f"{HOST}:{reserved.port}", yaml.read_text()))
        said = shell.run("tidemill", "up", "--no-redis", status=1)
    assert f"port {reserved.port} of {HOST}" in said
    assert f"process {os.getpid()}" in said
    assert "write it as bootstrap into tidemill.yaml" in said
    assert "Traceback" not in said


def test_a_broker_that_is_not_there_is_named_by_backfill(shell: Shell) -> None:
    said = shell.run("tidemill", "backfill", status=1)
    address = re.search(r"127\.0\.0\.1:\d+", (shell.folder / "tidemill.yaml").read_text())
    assert address is not None
    assert address[0] in said
    assert "Traceback" not in said
