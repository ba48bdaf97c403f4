"""Messages that a real broker has deleted: refused, accepted, killed right after, proven."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.pipelines.io.kafka.cluster import delete_before
from tests.support import fork_server
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tidemill.pipelines.io.kafka.client import Partition
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.set_aside import losses_of
from tidemill.pipelines.run.summary import read_summary
from tidemill.serving.generations.current import find_current


@pytest.fixture
def project(broker: TestBroker, tmp_path: Path) -> LiveProject:
    """A project whose topics have one partition each."""
    project = LiveProject(tmp_path / "shop", broker, partitions=1, shards=1)
    project.run("backfill")
    return project


def live_of(project: LiveProject) -> LiveLog:
    current = find_current(project.folder / "run")
    assert current is not None
    return LiveLog(current.folder / LIVE, None)  # type: ignore[arg-type]


def test_a_stream_that_is_killed_after_it_has_accepted_a_loss_goes_on_behind_it(
    project: LiveProject,
) -> None:
    project.produce(payments=30, checks=10)
    delete_before(project.broker, Partition(project.topics["payments"], 0), 5)
    refused = fork_server.run_command(("stream",), project.folder)
    assert refused.status == 1
    option = "payments/0@0-4"
    assert f"tidemill stream --accept-lost {option}" in " ".join(refused.printed.split())
    assert losses_of(live_of(project)) == []

    # Killed as soon as the record is there, before anything behind it is sealed.
    with project.streaming("--accept-lost", option) as process:
        deadline = time.monotonic() + 120
        while not losses_of(live_of(project)):
            assert process.poll() is None, project.log()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (record,) = losses_of(live_of(project))
    assert (record.loss.start, record.loss.stop, record.poll) == (0, 5, 1)

    # The same option again: what it accepts is recorded once.
    with project.streaming("--resume", "--accept-lost", option) as process:
        project.produce(payments=5, checks=3)
        project.wait_for(13, process)  # the stream before may have answered the first ten
        project.drain(process)
    assert losses_of(live_of(project)) == [record]
    assert f"--accept-lost {option} changes nothing" in " ".join(project.log().split())
    assert project.verify() > 0
    assert read_summary(project.folder / "run")["verify"]["lost_messages"] == 5
