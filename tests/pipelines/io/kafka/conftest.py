"""Both client libraries, and readers and writers that are closed when a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.pipelines.io.kafka.cluster import connection_to
from tests.support.kafka_broker import TestBroker
from tidemill.pipelines.io.kafka.child_process.library import InChildProcess
from tidemill.pipelines.io.kafka.choosing import CLIENTS, choose_client
from tidemill.pipelines.io.kafka.client import Client, ProducerSettings
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.kafka.writer import Writer

NewReader = Callable[..., Reader]
NewWriter = Callable[..., Writer]


_BESIDE = "kafka-python in a process beside"


@pytest.fixture(scope="session")
def beside() -> Iterator[InChildProcess]:
    """One process for all tests."""
    with InChildProcess() as client:
        yield client


@pytest.fixture(params=[*CLIENTS, _BESIDE])
def client(request: pytest.FixtureRequest) -> Client:
    """Each client library in turn."""
    if request.param == _BESIDE:
        found: Client = request.getfixturevalue("beside")
        return found
    return choose_client(request.param)


@pytest.fixture
def connection(broker: TestBroker) -> Connection:
    """How to connect without TLS and login."""
    return connection_to(broker)


@pytest.fixture
def new_reader(client: Client, connection: Connection) -> Iterator[NewReader]:
    """Make readers."""
    with ExitStack() as opened:
        yield lambda **settings: opened.enter_context(Reader(client, connection, **settings))


@pytest.fixture
def reader(new_reader: NewReader) -> Reader:
    """One reader."""
    return new_reader()


@pytest.fixture
def new_writer(client: Client, connection: Connection) -> Iterator[NewWriter]:
    """Make writers, by the settings of `ProducerSettings`."""
    with ExitStack() as opened:
        yield lambda **settings: opened.enter_context(
            Writer(client, connection, ProducerSettings(**settings))
        )


@pytest.fixture
def writer(new_writer: NewWriter) -> Writer:
    """One writer without transactions."""
    return new_writer()
