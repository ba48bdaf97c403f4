"""What streams run on: a Flink cluster for the tests of a module, a service and stores for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dataflow_service import DataflowService
from tests.support.flink_cluster import TestCluster
from tests.support.redis_server import RedisServer, running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    """A cluster, as `tidemill up --flink` starts it."""
    started = TestCluster(tmp_path_factory.mktemp("flink"))
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[DataflowService]:
    """A stand-in for Dataflow, to which this process gives files, too."""
    served = DataflowService()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", served.url)
    yield served
    served.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis."""
    with running(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def store(redis: RedisServer) -> str:
    """A Redis, as in a configuration."""
    return f"{{type: redis, host: {redis.host}, port: {redis.port}}}"
