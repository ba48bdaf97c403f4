"""The topics that a configuration names, and those of them that a local broker lacks.

Promises: a topic that exists is left as it is; one of another broker is never made; and the file is
read without importing the project, so that servers start where its code does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from tidemill.features.errors import BrokerUnreachable
from tidemill.pipelines.config.configuration import KEYS
from tidemill.pipelines.config.kafka_connection import read_connection, read_topic
from tidemill.pipelines.config.sink_section import SINKS
from tidemill.pipelines.config.strict_yaml import Value, read_file
from tidemill.pipelines.io.kafka.connection import Connection

PARTITIONS: Final = 2
"""How many partitions a topic gets."""
_LOCAL: Final = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class NamedTopic:
    """A topic that a configuration names.

    Attributes:
        name: Its name.
        where: Its key in the file, such as ``sources.orders.kafka``.
        addresses: Its brokers, host and port each.
    """

    name: str
    where: str
    addresses: tuple[tuple[str, int], ...]

    def local_port(self) -> int | None:
        """Return the port of its broker on this machine; None if it is of other machines."""
        return next((port for host, port in self.addresses if host in _LOCAL), None)


def named_topics(path: Path) -> list[NamedTopic]:
    """Return the topics of a configuration's sources, predictions and rejected records.

    Args:
        path: The file.

    Returns:
        In the order of the file; none of a project of files alone.

    Raises:
        ConfigurationError: The file or one of these sections cannot be used.
    """
    top = read_file(path).section(KEYS)
    sections = list(top.required("sources").section().values.values())
    sections += [top.values[name] for name in SINKS if name in top.values]
    found = [section.section().values.get("kafka") for section in sections]
    return [_named(value, path.absolute().parent) for value in found if value is not None]


def _named(value: Value, folder: Path) -> NamedTopic:
    section = value.section()
    servers = read_connection(section, folder)["bootstrap"]
    addresses = tuple(Connection(servers).addresses())
    return NamedTopic(read_topic(section), value.name, addresses)


def make_topics(address: str, topics: Sequence[str], partitions: int = PARTITIONS) -> list[str]:
    """Make the topics that a broker does not have.

    Args:
        address: The broker, ``HOST:PORT``.
        topics: Names of topics.
        partitions: How many partitions a new one gets.

    Returns:
        The names of those that were made.

    Raises:
        BrokerUnreachable: The broker does not answer, or refuses.
    """
    made = []
    try:
        admin = KafkaAdminClient(bootstrap_servers=address)
        try:
            there = set(admin.list_topics())
            for topic in dict.fromkeys(topics):
                if topic in there:
                    continue
                try:
                    admin.create_topics([NewTopic(topic, partitions, 1)])
                    made.append(topic)
                except TopicAlreadyExistsError:  # another program has made it meanwhile
                    continue
        finally:
            admin.close()
    except KafkaError as error:
        raise BrokerUnreachable(
            f"{address}: topics cannot be made: {error}; run `tidemill up` again"
        ) from error
    return made
