"""A store that loses writes while the operators of the stream run in other processes.

Nothing of the driver is within their reach: no memory is shared, and the driver itself fails if it
operates or writes to the store. Each shard is mended by its own operator.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tests.pipelines.recovery.handoff_test import BEGIN, STOP, store
from tests.support.builds import make_build
from tests.support.redis_server import RedisServer, running
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    arrivals,
    configuration,
    random_rows,
)
from tidemill.features.contract import TIME_MIN
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines import stream_job
from tidemill.pipelines.engines.options import pipeline_options
from tidemill.pipelines.publish.store_writer import StoreWriter
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream.featurize import _Operate
from tidemill.pipelines.stream_run.stream import stream
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.stores.online_places import OnlinePlace

WORKERS = 2
SPEED = 50.0
LOSSES = 2


def made(root: Path, place: OnlinePlace) -> Configuration:
    config = configuration(root, PROJECT, BEGIN, STOP, poll_rows=8)
    config = replace(config, online_store=place)
    rows = random_rows(7, trips=200, hails=60)
    make_build(config, arrivals(PROJECT, rows, PARTITIONS, random.Random(7)), publish=True)
    return config


def in_other_processes(*arguments: Any) -> PipelineOptions:
    options = pipeline_options(*arguments).get_all_options(drop_default=True)
    return PipelineOptions.from_dictionary(
        {
            **options,
            "direct_running_mode": "multi_processing",
            "direct_num_workers": WORKERS,
        }
    )


@contextmanager
def losing(config: Configuration, server: RedisServer) -> Iterator[list[int]]:
    """Let the store lose everything, each time the stream has published for a while.

    Yields:
        How far the store was at each loss.
    """
    lost: list[int] = []
    over = threading.Event()

    def reached() -> int:
        database = open_database(config.online_store)
        try:
            spaces = [(KeySpace.of(PROJECT.name, view), []) for view in PROJECT.views]
            shown = [snapshot.frontiers.by_shard for snapshot in database.read(spaces)]
        except Exception:  # noqa: BLE001 - it has just lost all
            return TIME_MIN
        finally:
            database.close()
        return min((at for one in shown for at in one.values()), default=TIME_MIN)

    def lose() -> None:
        at = BEGIN
        while len(lost) < LOSSES and not over.wait(0.02):
            if (now := reached()) > at + (STOP - BEGIN) // 5:
                server.kill()
                server.forget()
                server.start()
                lost.append(now)
                at = now

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        over.set()
        thread.join()


def test_operators_in_other_processes_mend_a_store_that_loses_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*_: Any) -> None:
        raise AssertionError("the driver operates")

    monkeypatch.setattr(stream_job, "pipeline_options", in_other_processes)
    monkeypatch.setattr(_Operate, "work", not_here)
    monkeypatch.setattr(StoreWriter, "write", not_here)
    with running(tmp_path / "redis", {"appendonly": "yes", "appendfsync": "always"}) as server:
        config = made(tmp_path / "run", server.place)
        with losing(config, server) as lost:
            figures = stream(config, QuietProgress(), engine="fnapi", speed=SPEED)
        assert len(lost) == LOSSES
        assert figures["store_mended_at_end"] is False
        assert figures["predictions"] == figures["requests"] > 30
        mended = store(config)
        monkeypatch.undo()
        server.kill()
        server.forget()
        server.start()
        calm = made(tmp_path / "calm", server.place)
        stream(calm, QuietProgress(), engine="fnapi")
        assert mended == store(calm)
