"""How to connect to a Kafka cluster: plain data, whose text never shows a password."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from tidemill.features.errors import ConfigurationError

PORT = 9092
"""The port where none is named."""
KAFKA_PYTHON: Final = "kafka-python"
CONFLUENT: Final = "confluent-kafka"
CLIENTS: Final = (KAFKA_PYTHON, CONFLUENT)
"""The client libraries."""


class Secret(str):
    """A text that is not shown where it is logged or is part of something shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return stars, however long the text is."""
        return "'***'"


class Mechanism(Enum):
    """The SASL mechanisms; the value is Kafka's name."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


@dataclass(frozen=True)
class Tls:
    """How to connect by TLS; the broker's certificate must be for its host name.

    Attributes:
        ca: PEM file of the trusted authorities; None trusts the system's.
        certificate: PEM file of our own certificate, if the broker asks for one.
        key: PEM file of its key.
        key_password: What the key is encrypted with; None if it is not.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    key_password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError(
                "kafka.tls: a certificate goes with its key: name both certificate and key, or "
                "neither"
            )
        for name in ("ca", "certificate", "key"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ConfigurationError(f"kafka.tls.{name}: there is no file {path}; correct it")


@dataclass(frozen=True)
class Sasl:
    """How to log in.

    Attributes:
        mechanism: The mechanism.
        user: The user.
        password: The password.
    """

    mechanism: Mechanism
    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.user or not self.password:
            raise ConfigurationError("kafka.sasl: give both the user and the password")


@dataclass(frozen=True)
class Connection:
    """How to connect to a cluster.

    Attributes:
        servers: Some of its brokers, ``host:port`` each; the cluster names the others.
        tls: How to connect by TLS; None connects in plain text.
        sasl: How to log in; None does not.
        client_id: The name that the broker's logs and quotas have for us.
        client: The client library (`choosing.choose_client`).
    """

    servers: tuple[str, ...]
    tls: Tls | None = None
    sasl: Sasl | None = None
    client_id: str = "tidemill"
    client: str = KAFKA_PYTHON

    def __post_init__(self) -> None:
        if not self.servers:
            raise ConfigurationError("kafka.servers: name at least one broker, host:port")
        self.addresses()

    def addresses(self) -> list[tuple[str, int]]:
        """Return the host and port of each server.

        Raises:
            ConfigurationError: One is not ``host:port``.
        """
        return [_address(server) for server in self.servers]

    @property
    def protocol(self) -> str:
        """The protocol as Kafka names it: ``PLAINTEXT``, ``SSL``, or with ``SASL_`` before it."""
        transport = "PLAINTEXT" if self.tls is None else "SSL"
        return transport if self.sasl is None else f"SASL_{transport}"


def _address(server: str) -> tuple[str, int]:
    host, colon, port = server.rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.startswith("[")):
        host, port = server, str(PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isascii() or not port.isdigit():
        raise ConfigurationError(f"kafka.servers: found {server!r}, expected host:port")
    if not 0 < int(port) < 65536:
        raise ConfigurationError(f"kafka.servers: found {server!r}, expected a port of 1 to 65535")
    return host, int(port)
