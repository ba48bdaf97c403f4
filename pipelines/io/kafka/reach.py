"""Reaching a cluster: whether it can be used as it is about to be, and if not, exactly why."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from kafka.errors import for_code
from kafka.protocol.metadata import MetadataRequest

from tidemill.features.errors import (
    BrokerError,
    BrokerUnreachable,
    NoSuchTopic,
    NotAuthorised,
    UnknownBrokerHost,
)
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.wire import Wire, connect

WITHIN_S: Final = 5.0

_UNKNOWN_TOPIC: Final = 3
_INVALID_TOPIC: Final = 17
_NOT_AUTHORISED: Final = 29
_READ: Final = 3
_WRITE: Final = 4
_DESCRIBE: Final = 8
"""Kafka's numbers of operations on a topic."""
_LEAST_S: Final = 0.1
_AGAIN_S: Final = 0.1


def reach(
    connection: Connection,
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
    within_s: float = WITHIN_S,
) -> None:
    """Connect to the first server that answers, log in, and look at the topics.

    Args:
        connection: How to connect.
        reads: Topics that will be read.
        writes: Topics that will be written to.
        within_s: When all of it must be done, in seconds.

    Raises:
        UnknownBrokerHost: No server's name has an address.
        BrokerUnreachable: No server listens or answers; or the cluster names its brokers by
            addresses (``advertised.listeners``) that cannot be reached from here.
        NotKafka: The port speaks TLS or plain text instead of the other, or no Kafka.
        UntrustedCertificate: The certificate is not trusted, is expired or is another host's.
        ClientCertificateNeeded: The broker wants a certificate of ours, or another one.
        MechanismNotOffered: The broker does not offer the SASL mechanism.
        WrongCredentials: The user or the password is wrong, or missing.
        NoSuchTopic: A topic does not exist.
        NotAuthorised: The user may not read or write a topic.
        ConfigurationError: A file of ``connection.tls`` cannot be used.
    """
    deadline_s = time.monotonic() + within_s
    failures: list[BrokerError] = []
    addresses = connection.addresses()
    for tried, (host, port) in enumerate(addresses):
        share_s = (deadline_s - time.monotonic()) / (len(addresses) - tried)
        try:
            wire = Wire(host, port, connection, time.monotonic() + share_s)
        except BrokerError as failure:
            failures.append(failure)
            continue
        try:
            metadata = _metadata(wire, sorted({*reads, *writes}), time.monotonic() + share_s)
        finally:
            wire.close()
        _check_topics(wire.place, connection, metadata, reads, writes)
        _check_brokers(wire.place, metadata, deadline_s)
        return
    # A server that answers, and refuses, says more than one that is away.
    failures.sort(key=lambda failure: isinstance(failure, BrokerUnreachable | UnknownBrokerHost))
    if len(failures) == 1:
        raise failures[0]
    raise type(failures[0])("; and ".join(map(str, failures)))


def _metadata(wire: Wire, topics: Sequence[str], deadline_s: float) -> Any:
    """Ask for brokers and topics, again while the cluster is about to be ready."""
    one = MetadataRequest.MetadataRequestTopic
    while True:
        metadata = wire.ask(
            MetadataRequest(
                topics=[one(name=name) for name in topics],
                allow_auto_topic_creation=False,
                include_topic_authorized_operations=True,
            )
        )
        starting = not metadata.brokers or any(
            topic.error_code and for_code(topic.error_code).retriable
            for topic in metadata.topics
            if topic.error_code != _UNKNOWN_TOPIC
        )
        if not starting or time.monotonic() + _AGAIN_S > deadline_s:
            return metadata
        time.sleep(_AGAIN_S)


def _check_topics(
    place: str,
    connection: Connection,
    metadata: Any,
    reads: Sequence[str],
    writes: Sequence[str],
) -> None:
    user = "an unnamed user" if connection.sasl is None else f"the user {connection.sasl.user!r}"
    for topic in metadata.topics:
        if topic.error_code in (_UNKNOWN_TOPIC, _INVALID_TOPIC):
            raise NoSuchTopic(
                f"{place}: there is no topic {topic.name!r}; create it, or correct its name"
            )
        if topic.error_code == _NOT_AUTHORISED:
            raise NotAuthorised(
                f"{place}: {user} may not see the topic {topic.name!r}, if it exists; grant READ, "
                "or WRITE, on it"
            )
        if topic.error_code:
            raise BrokerUnreachable(
                f"{place}: the topic {topic.name!r} is not ready: "
                f"{for_code(topic.error_code).__name__}; try again"
            )
        for names, operation, verb in ((reads, _READ, "READ"), (writes, _WRITE, "WRITE")):
            granted = topic.authorized_operations or ()
            # Whoever sees a topic may describe it: without that the broker does not tell.
            if topic.name in names and _DESCRIBE in granted and operation not in granted:
                raise NotAuthorised(
                    f"{place}: {user} may not {verb.lower()} the topic {topic.name!r}; grant "
                    f"{verb} on it"
                )


def _check_brokers(place: str, metadata: Any, deadline_s: float) -> None:
    """One of the brokers must be reachable by the address that the cluster has for it."""
    if not metadata.brokers:
        raise BrokerUnreachable(
            f"{place}: the broker answers, and the cluster has none that is ready; try again"
        )
    named = [(broker.host, broker.port) for broker in metadata.brokers]
    failures = []
    for tried, (host, port) in enumerate(named):
        share_s = max(_LEAST_S, (deadline_s - time.monotonic()) / (len(named) - tried))
        try:
            connect(host, port, time.monotonic() + share_s).close()
        except BrokerError as failure:
            failures.append(str(failure))
        else:
            return
    raise BrokerUnreachable(
        f"{place}: the broker answers, and names its cluster by addresses that cannot be reached "
        f"from here: {'; '.join(failures)}; correct its advertised.listeners"
    )
