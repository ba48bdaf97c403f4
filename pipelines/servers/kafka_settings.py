"""The settings of a Kafka broker of one node, as text for its ``server.properties``.

They are made for trials and tests on one machine: a quick start, little memory, nothing replicated.
**No record is ever deleted by its age**, because replayed history is older than any retention time.

The names of settings are those of https://kafka.apache.org/41/configuration/broker-configs/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
_FORBIDDEN: Final = frozenset("\"'\\,[]=;\n\r")


class Protocol(StrEnum):
    """How a listener is spoken to; Kafka's own names."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


class Mechanism(StrEnum):
    """How a user proves who they are; Kafka's own names."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


@dataclass(frozen=True)
class User:
    r"""A user of the listeners with SASL.

    Attributes:
        name: The name; like the password without quotes, brackets, ``\``, ``,``, ``=`` and ``;``.
        password: The password. It stands in the broker's settings, which only this user of the
            machine can read. That of a SCRAM user is shown by ``ps`` while the data are formatted.
        mechanism: The one mechanism with which the user logs in.
    """

    name: str
    password: str
    mechanism: Mechanism

    def __post_init__(self) -> None:
        """Refuse what Kafka's formats for users have no way to write."""
        if not self.name or not self.password or _FORBIDDEN & {*self.name, *self.password}:
            raise ValueError(
                f"the user {self.name!r}: name and password must not be empty or hold one of "
                f"{' '.join(sorted(repr(letter)[1:-1] for letter in _FORBIDDEN))}"
            )


COMMON: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "log.retention.ms": "-1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}
"""Settings that do not depend on the machine; `examples/compose.yaml` has them too."""

_QUICK_AND_SMALL: Final[Mapping[str, str]] = {
    # A broker that was killed is let in again after this time, in milliseconds, instead of 9000.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "16777216",  # bytes, instead of 128 MiB
}


def broker_settings(
    data: Path,
    ports: Mapping[Protocol, int],
    controller_port: int,
    users: Sequence[User] = (),
    key_store: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the settings of a broker.

    Args:
        data: The folder of its data.
        ports: The port of each listener.
        controller_port: The port on which the broker talks to itself.
        users: The users of the listeners with SASL.
        key_store: A PEM file with the private key and the certificate of the listeners with TLS.
        more: Further settings, which take precedence.
    """
    listeners = [f"{name.value}://{HOST}:{port}" for name, port in ports.items()]
    protocols = [f"{name.value}:{name.value}" for name in ports]
    settings = {
        **COMMON,
        **_QUICK_AND_SMALL,
        "log.dirs": str(data),
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": ",".join([*listeners, f"CONTROLLER://{HOST}:{controller_port}"]),
        "advertised.listeners": ",".join(listeners),
        "listener.security.protocol.map": ",".join([*protocols, "CONTROLLER:PLAINTEXT"]),
        "inter.broker.listener.name": Protocol.PLAINTEXT.value,
    }
    if key_store is not None:
        settings |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(key_store)}
    for name in ports:
        if name in (Protocol.SASL_PLAINTEXT, Protocol.SASL_SSL):
            settings |= _sasl(f"listener.name.{name.value.lower()}", users)
    return {**settings, **(more or {})}


def _sasl(listener: str, users: Sequence[User]) -> dict[str, str]:
    """Return the settings of a listener with SASL: every mechanism, each with its own users."""
    known = "".join(
        f' user_{user.name}="{user.password}"'
        for user in users
        if user.mechanism is Mechanism.PLAIN
    )
    modules = {Mechanism.PLAIN: f"plain.PlainLoginModule required{known};"}
    for mechanism in (Mechanism.SCRAM_SHA_256, Mechanism.SCRAM_SHA_512):
        modules[mechanism] = "scram.ScramLoginModule required;"
    return {
        f"{listener}.sasl.enabled.mechanisms": ",".join(modules),
        **{
            f"{listener}.{mechanism.value.lower()}.sasl.jaas.config": (
                f"org.apache.kafka.common.security.{module}"
            )
            for mechanism, module in modules.items()
        },
    }


def properties(settings: Mapping[str, str]) -> str:
    r"""Write settings in the format of Java's properties.

    >>> properties({"log.dirs": "a b"})
    'log.dirs=a b\n'
    """
    return "".join(f"{name}={_escaped(value)}\n" for name, value in settings.items())


def _escaped(value: str) -> str:
    kept = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    kept = "".join(letter if letter.isascii() else _as_java(letter) for letter in kept)
    return f"\\{kept}" if kept.startswith(" ") else kept


def _as_java(letter: str) -> str:
    """Write a letter as Java's UTF-16 units."""
    units = letter.encode("utf-16-be")
    return "".join(
        f"\\u{int.from_bytes(units[at : at + 2], 'big'):04x}" for at in range(0, len(units), 2)
    )
