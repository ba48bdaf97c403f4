"""What every test gets: quiet libraries, Hypothesis without a clock, no way to be skipped, servers.

At the end no process may be left behind.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Read by the libraries when they are imported, so set before any test module is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.support import beam_memo, postgresql_server
from tests.support.kafka_broker import TestBroker
from tests.support.no_skips import (  # noqa: F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)
from tests.support.postgresql_server import PostgresqlServer
from tests.support.shared_folder import open_shared_folder
from tests.support.stock_client_process import StockClient
from tidemill.pipelines.commands.feast_import import leave_out_checks

# Containers often set this variable. Then every process compiles the modules of TensorFlow, Beam
# and Feast anew: importing TensorFlow takes 15 s of processor time instead of 6 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# As the command line does, before a test's module imports Feast.
leave_out_checks()

beam_memo.remember()

# Two cores are shared with engines and compilers: how long an example takes decides nothing.
settings.register_profile(
    "tidemill",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tidemill")


# They take half a minute or more each. A worker of pytest-xdist takes whole files in this order:
# one of them at the end would leave the other workers without work. One of each three waits for
# others most of its time, so that three workers keep two cores busy.
LONGEST = (
    "tests/pipelines/engines/flink_cluster_test.py",
    "tests/pipelines/stream_run/live_test.py",
    "tests/pipelines/history/corrections_test.py",
    "tests/pipelines/recovery/two_streams_test.py",
    "tests/pipelines/stream_run/live_faults_test.py",
    "tests/benchmarks/benchmarks_test.py",
    "tests/pipelines/engines/exchange_test.py",
    "tests/pipelines/engines/dataflow_run_test.py",
    "tests/pipelines/engines/dataflow_batch_test.py",
    "tests/pipelines/training/version_test.py",
    "tests/pipelines/stream_run/kafka_sink_test.py",
    "tests/pipelines/commands/demo_test.py",
    "tests/packaging/wheel_test.py",
    "tests/pipelines/forget/topics_test.py",
    "tests/pipelines/upgrade/upgrade_test.py",
    "tests/pipelines/stream/joiners_test.py",
    "tests/pipelines/recovery/killed_fill_test.py",
    "tests/pipelines/recovery/republish_test.py",
    "tests/pipelines/stream_run/replay_live_test.py",
    "tests/pipelines/recovery/handoff_test.py",
    "tests/pipelines/stream/cuttings_test.py",
    "tests/pipelines/stream_run/disorder_test.py",
    "tests/pipelines/publish/store_faults_test.py",
    "tests/pipelines/commands/faults_test.py",
    "tests/pipelines/commands/init_kafka_test.py",
    "tests/pipelines/forget/replay_test.py",
    "tests/pipelines/verify/follow/follower_test.py",
    "tests/pipelines/telemetry/live_telemetry_test.py",
    "tests/pipelines/verify/unfinished_test.py",
    "tests/pipelines/history/builds_test.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest first; the others keep their order."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(LONGEST)))


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections: each would look at 600,000 objects."""
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Open the folder for what the workers share."""
    open_shared_folder(config, postgresql_server.stop_shared)


@pytest.fixture(scope="session")
def postgresql() -> PostgresqlServer:
    """Run a PostgreSQL, once for all tests that want one."""
    return postgresql_server.shared()


@pytest.fixture(scope="session")
def stock_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockClient]:
    """Feast's SDK in a process of its own, once for all the tests of this process that ask it."""
    client = StockClient(tmp_path_factory.mktemp("stock_client"))
    yield client
    client.close()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A Kafka broker, once for all the tests of this process that want one."""
    started = TestBroker(tmp_path_factory.mktemp("kafka"))
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Callable[..., TestBroker]]:
    """Make Kafka brokers of a test's own, with settings: it starts, kills and pauses them."""
    made: list[TestBroker] = []

    def make(settings: Mapping[str, str] | None = None) -> TestBroker:
        made.append(TestBroker(tmp_path / f"kafka-{len(made)}", settings))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


@pytest.fixture(scope="session", autouse=True)
def no_engine_is_left_running() -> Iterator[None]:
    """Fail the session when a process of an engine or a broker outlives the tests."""
    yield
    left = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
        and ("prism" in process.name() or process.name() == "java")
    ]
    assert not left, f"these processes outlived the tests: {left}"
