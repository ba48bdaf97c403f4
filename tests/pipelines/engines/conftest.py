"""A Flink cluster for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.flink_cluster import TestCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    """A cluster, as `tidemill up --flink` starts it."""
    started = TestCluster(tmp_path_factory.mktemp("flink"))
    try:
        started.start()
        yield started
    finally:
        started.close()
