"""What streams run on: a Flink cluster for the tests of a module, stores and storage for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.flink_cluster import TestCluster
from tests.support.redis_server import RedisServer, free_port, running
from tests.support.s3_server import S3Server


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
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server, whose credentials this process has."""
    server = S3Server(tmp_path / "s3", free_port())
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis."""
    with running(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def store(redis: RedisServer) -> str:
    """A Redis, as in a configuration."""
    return f"{{type: redis, host: {redis.host}, port: {redis.port}}}"
