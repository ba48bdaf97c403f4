"""The jars that run Kafka's broker, as `kafka_jars.lock` names them; `locks/jars.py` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOCK: Final = Path(__file__).resolve().with_name("kafka_jars.lock")
"""One jar a line: its coordinates, two spaces, ``sha256:`` and 64 hexadecimal digits."""


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


def locked_jars() -> tuple[Jar, ...]:
    """Return the jars of the lock, in its order."""
    jars = []
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            coordinates, _, digest = line.partition("  sha256:")
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, digest))
    return tuple(jars)
