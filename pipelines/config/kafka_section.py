"""The topic of a live source in the YAML file.

```yaml
kafka:
  bootstrap: localhost:9092     # one or several host:port
  topic: payments
  format: json                  # optional: of the messages; by default the source's format
  columns: {card: key}          # optional: key, timestamp, offset, partition or header:NAME
  tombstones: ignore            # optional: messages without a value; by default they are rejected
  schema: payment.avsc          # optional: of avro, or descriptors of protobuf
  message: shop.Payment         # optional: the message type of protobuf
  registry: {url: "http://localhost:8081"}   # optional: of avro and protobuf; also user,
                                # password_env, ca
  start: handoff                # optional: handoff (default), earliest, latest, or a time
  clock: wall                   # optional: wall (default), or messages for producers of the past
  quiet: 2s                     # optional: how long a message may be on its way to the broker
  tls: true                     # optional: true, or {ca: FILE, certificate: FILE, key: FILE}
  username: tidemill            # optional, with password_env or password_file
  password_env: KAFKA_PASSWORD
  mechanism: SCRAM-SHA-512      # optional: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 (default)
```
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.features.contract import SECOND
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.schema_registry import SchemaRegistry, read_schema_registry
from tidemill.pipelines.config.strict_yaml import Section, Value
from tidemill.pipelines.io.kafka.connection import Connection, Mechanism, Sasl, Tls
from tidemill.pipelines.io.payloads.decoders import FORMATS
from tidemill.pipelines.io.payloads.decoding import REJECT_TOMBSTONES, TOMBSTONES

KAFKA_KEYS: Final = (
    "bootstrap", "topic", "format", "columns", "tombstones", "schema", "message", "frame",
    "registry", "start", "clock", "quiet", "tls", "username",
    "password_env", "password_file", "mechanism",
)  # fmt: skip
HANDOFF: Final = "handoff"
"""Begin at the messages that were sent at the instant of the handed-over states, or later."""
EARLIEST: Final = "earliest"
LATEST: Final = "latest"
PAYLOADS: Final = FORMATS
"""The formats of messages."""
CLOCKS: Final = ("wall", "messages")
MECHANISMS: Final = tuple(mechanism.value for mechanism in Mechanism)
TLS_KEYS: Final = ("ca", "certificate", "key")


@dataclass(frozen=True)
class KafkaTopic:
    """The topic of a live source.

    Attributes:
        bootstrap: Brokers, ``host:port``.
        topic: The topic.
        format: The format of the messages, of `PAYLOADS`; None is the source's format.
        columns: Declared columns that come from a message's key, headers, timestamp or place
            (`pipelines.io.payloads.metadata.Metadata`).
        tombstones: What becomes of a message without a value.
        schema: A file with the schema of avro, or with the descriptors of protobuf.
        message: The full name of protobuf's message type.
        frame: What stands before a record of avro (`pipelines.io.payloads.avro_rows.FRAMES`).
        registry: Where the schemas of avro or protobuf are registered.
        start: `HANDOFF`, `EARLIEST`, `LATEST`, or an instant in UTC microseconds.
        clock: How quiet partitions are timed (`pipelines.io.live.live_reader.LiveSource`).
        quiet_us: As `pipelines.io.live.live_reader.Pace.quiet_us`.
        tls: None without TLS.
        username: None without a login.
        password_env: The environment variable that holds the password.
        password_file: The file that holds it.
        mechanism: How a login is made.
    """

    bootstrap: tuple[str, ...]
    topic: str
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tombstones: str = REJECT_TOMBSTONES
    schema: Path | None = None
    message: str | None = None
    frame: str | None = None
    registry: SchemaRegistry | None = None
    start: str | int = HANDOFF
    clock: str = "wall"
    quiet_us: int = 2 * SECOND
    tls: Tls | None = None
    username: str | None = None
    password_env: str | None = None
    password_file: Path | None = None
    mechanism: str = "SCRAM-SHA-512"

    @property
    def connection(self) -> Connection:
        """How to connect, with the password as it is now.

        Raises:
            ConfigurationError: The password cannot be read.
        """
        sasl = None
        if self.username is not None:
            sasl = Sasl(Mechanism(self.mechanism), self.username, self._password() or "")
        return Connection(self.bootstrap, self.tls, sasl)

    def _password(self) -> str | None:
        """Read the password; None without a login.

        Raises:
            ConfigurationError: The variable is not set, or the file cannot be read.
        """
        if self.password_env is not None:
            if (found := os.environ.get(self.password_env)) is None:
                raise ConfigurationError(
                    f"the environment variable {self.password_env!r} is not set; it holds the "
                    f"password of user {self.username!r} at {', '.join(self.bootstrap)}"
                )
            return found
        if self.password_file is not None:
            try:
                return self.password_file.read_text(encoding="utf-8").rstrip("\n")
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"the password of user {self.username!r} cannot be read: {error}"
                ) from None
        return None


def read_kafka(value: Value, folder: Path) -> KafkaTopic:
    """Read the section of a topic; relative paths are below ``folder``.

    Raises:
        ConfigurationError: A value cannot be used, or does not go with another.
    """
    section = value.section(KAFKA_KEYS)
    topic = section.required("topic").text()
    if not topic:
        raise section.values["topic"].wrong("expected the name of a topic")
    found = section.read(
        {
            "format": lambda value: value.one_of(PAYLOADS),
            "start": _start,
            "clock": lambda value: value.one_of(CLOCKS),
            "quiet": Value.duration_us,
            "columns": _columns,
            "tombstones": lambda value: value.one_of(TOMBSTONES),
            "schema": lambda value: folder / value.text(),
            "message": Value.text,
            "frame": Value.text,
            "registry": lambda value: read_schema_registry(value, folder),
            "tls": lambda value: _tls(value, folder),
            "username": Value.text,
            "password_env": Value.text,
            "password_file": lambda value: folder / value.text(),
            "mechanism": lambda value: value.one_of(MECHANISMS),
        }
    )
    _check_login(section)
    return KafkaTopic(bootstrap=_brokers(section.required("bootstrap")), topic=topic, **found)


def _brokers(value: Value) -> tuple[str, ...]:
    brokers = tuple(part.strip() for part in value.text().split(","))
    for broker in brokers:
        host, _, port = broker.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise value.wrong(
                f"{broker!r} is no broker; expected host:port, such as localhost:9092"
            )
    return brokers


def _start(value: Value) -> str | int:
    if getattr(value.node, "value", None) in (HANDOFF, EARLIEST, LATEST):
        return value.text()
    return value.instant_us()


def _columns(value: Value) -> dict[str, str]:
    return {name: found.text() for name, found in value.section().values.items()}


def _tls(value: Value, folder: Path) -> Tls | None:
    if (given := value.flag()) is not None:
        return Tls() if given else None
    section = value.section(TLS_KEYS)
    files = {name: folder / found.text() for name, found in section.values.items()}
    if ("certificate" in files) != ("key" in files):
        raise value.wrong("a client's certificate and its key go together; give both or none")
    return Tls(files.get("ca"), files.get("certificate"), files.get("key"))


def _check_login(section: Section) -> None:
    passwords = [name for name in ("password_env", "password_file") if name in section.values]
    if len(passwords) > 1:
        raise section.values[passwords[1]].wrong("give password_env or password_file, not both")
    has_user = "username" in section.values
    if has_user and not passwords:
        raise section.values["username"].wrong("needs password_env or password_file too")
    if passwords and not has_user:
        raise section.values[passwords[0]].wrong("needs username too")
    if "mechanism" in section.values and not has_user:
        raise section.values["mechanism"].wrong("needs username too")
