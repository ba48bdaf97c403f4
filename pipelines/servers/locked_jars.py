"""The jars that run servers, as locks name them; `locks/jars.py` writes the locks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Jar:
    """A locked jar.

    Attributes:
        group: The group of its Maven coordinates.
        artifact: The artifact.
        version: The version.
        sha256: The hash of its bytes, in hexadecimal digits.
    """

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        """The name of its file, as Maven names it."""
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


@dataclass(frozen=True)
class JarLock:
    """The lock of a server's jars.

    Attributes:
        server: The server's name, as messages have it.
        path: The file, with one jar a line: its coordinates, two spaces, ``sha256:`` and 64
            hexadecimal digits.
    """

    server: str
    path: Path

    def jars(self) -> tuple[Jar, ...]:
        """Return the jars of the lock, in its order."""
        jars = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                coordinates, _, digest = line.partition("  sha256:")
                group, artifact, version = coordinates.split(":")
                jars.append(Jar(group, artifact, version, digest))
        return tuple(jars)


_HERE: Final = Path(__file__).resolve()
KAFKA: Final = JarLock("Kafka", _HERE.with_name("kafka_jars.lock"))
"""A broker, and what writes its log messages to standard error."""
FLINK: Final = JarLock("Flink", _HERE.with_name("flink_jars.lock"))
"""A session cluster of Flink, and Beam's job server for it."""
LOCKS: Final = (KAFKA, FLINK)
