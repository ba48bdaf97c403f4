"""What answers on a port: a cluster by its id, something else, or nothing."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.kafka_broker import TestBroker
from tidemill.pipelines.servers.kafka_probe import cluster_at
from tidemill.pipelines.servers.kafka_settings import HOST, Protocol
from tidemill.pipelines.servers.ports import ReservedPort


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that gives one answer and ends; yields its port."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1_000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(30)


def test_a_broker_gives_the_id_of_its_cluster(broker: TestBroker) -> None:
    assert cluster_at(HOST, broker.ports[Protocol.PLAINTEXT], 10.0) == broker.cluster_id


def test_nothing_listens_on_a_port_that_is_only_reserved() -> None:
    with ReservedPort(HOST) as reserved:
        assert cluster_at(HOST, reserved.port, 1.0) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">i", -1),
        struct.pack(">ii", 4, 0x7469_6465),
        struct.pack(">iii", 8, 1, 1),  # of another request
        struct.pack(">iii", 8, 0x7469_6465, 0),  # without a broker
        struct.pack(">iii", 8, 0x7469_6465, 1),  # which ends too early
        struct.pack(">iiiihihh", 24, 0x7469_6465, 1, 1, 0, 1, -1, -1),  # without an id
        struct.pack(">iiiihihh", 24, 0x7469_6465, 1, 1, 0, 1, -1, 2) + b"\xff\xfe",
    ],
)
def test_an_answer_that_is_not_kafkas_is_told_from_none(answer: bytes) -> None:
    with answering(answer) as port:
        assert cluster_at(HOST, port, 5.0) == ""


def test_a_listener_with_tls_or_sasl_is_no_plain_one(broker: TestBroker) -> None:
    assert cluster_at(HOST, broker.ports[Protocol.SASL_PLAINTEXT], 5.0) == ""
