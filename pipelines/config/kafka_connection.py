"""How to connect to the brokers of a topic: the keys that sources and sinks share.

```yaml
bootstrap: localhost:9092     # one or several host:port
tls: true                     # optional: true, or {ca: FILE, certificate: FILE, key: FILE}
username: tidemill            # optional, with password_env or password_file
password_env: KAFKA_PASSWORD
mechanism: SCRAM-SHA-512      # optional: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 (default)
client: confluent-kafka       # optional: kafka-python (default), or confluent-kafka, which takes
                              # less of the processor (`tidemill[confluent]`)
```
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.strict_yaml import Section, Value
from tidemill.pipelines.io.kafka.connection import (
    CLIENTS,
    KAFKA_PYTHON,
    Connection,
    Mechanism,
    Sasl,
    Tls,
)

CONNECTION_KEYS: Final = (
    "bootstrap", "tls", "username", "password_env", "password_file", "mechanism", "client",
)  # fmt: skip
MECHANISMS: Final = tuple(mechanism.value for mechanism in Mechanism)
TLS_KEYS: Final = ("ca", "certificate", "key")


@dataclass(frozen=True, kw_only=True)
class KafkaConnection:
    """How to connect to the brokers of a topic.

    Attributes:
        bootstrap: Brokers, ``host:port``.
        tls: None without TLS.
        username: None without a login.
        password_env: The environment variable that holds the password.
        password_file: The file that holds it.
        mechanism: How a login is made.
        client: The client library; confluent-kafka takes a sixth of the processor's time, and is
            the extra ``tidemill[confluent]``.
    """

    bootstrap: tuple[str, ...]
    tls: Tls | None = None
    username: str | None = None
    password_env: str | None = None
    password_file: Path | None = None
    mechanism: str = "SCRAM-SHA-512"
    client: str = KAFKA_PYTHON

    @property
    def connection(self) -> Connection:
        """How to connect, with the password as it is now.

        Raises:
            ConfigurationError: The password cannot be read.
        """
        sasl = None
        if self.username is not None:
            sasl = Sasl(Mechanism(self.mechanism), self.username, self._password() or "")
        return Connection(self.bootstrap, self.tls, sasl, client=self.client)

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


def read_connection(section: Section, folder: Path) -> dict[str, Any]:
    """Read the keys of a connection, as arguments; relative paths are below ``folder``.

    Raises:
        ConfigurationError: A value cannot be used, or does not go with another.
    """
    found = section.read(
        {
            "tls": lambda value: _tls(value, folder),
            "username": Value.text,
            "password_env": Value.text,
            "password_file": lambda value: folder / value.text(),
            "mechanism": lambda value: value.one_of(MECHANISMS),
            "client": lambda value: value.one_of(CLIENTS),
        }
    )
    _check_login(section)
    return {"bootstrap": _brokers(section.required("bootstrap")), **found}


def read_topic(section: Section) -> str:
    """Read the name of a topic.

    Raises:
        ConfigurationError: There is none.
    """
    topic = section.required("topic").text()
    if not topic:
        raise section.values["topic"].wrong("expected the name of a topic")
    return topic


def _brokers(value: Value) -> tuple[str, ...]:
    brokers = tuple(part.strip() for part in value.text().split(","))
    for broker in brokers:
        host, _, port = broker.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise value.wrong(
                f"{broker!r} is no broker; expected host:port, such as localhost:9092"
            )
    return brokers


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
