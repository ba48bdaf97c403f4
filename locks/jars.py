"""Writes the lock of Kafka's jars anew: ``python -m locks.jars``.

To change Kafka's version, change `ROOTS` and `examples/compose.yaml`, run this, and read the
difference. jgo resolves the coordinates, as Maven does; the hashes are those of the jars that it
fetches from the repositories that this user has configured.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Final

from jgo.maven import MavenContext

from tidemill.pipelines.servers import fetching
from tidemill.pipelines.servers.locked_jars import LOCK, Jar
from tidemill.pipelines.servers.maven_settings import local_repository, read_settings

ROOTS: Final = ("org.apache.kafka:kafka_2.13:4.1.1", "org.slf4j:slf4j-simple:1.7.36")
"""The broker, and what writes its log messages to standard error."""

_SCOPES: Final = ("compile", "runtime")
_HEAD: Final = (
    "# Kafka's jars, those of the coordinates in locks/jars.py and of all that they need at run "
    "time.\n# Written by `python -m locks.jars`: one jar a line, GROUP:ARTIFACT:VERSION and its "
    "hash.\n"
)


def resolved(repository: Path) -> list[tuple[str, str, str]]:
    """Return `ROOTS` and all that they need at run time: group, artifact, version; sorted.

    Args:
        repository: A folder in which project files that were fetched are kept.
    """
    context = MavenContext(
        repo_cache=repository,
        local_repos=[local_repository(read_settings())],
        remote_repos=fetching.repositories(),
    )
    roots = [context.create_dependency(root) for root in ROOTS]
    inputs, others = context.resolver.resolve(roots)
    found = [*inputs, *(other for other in others if other.scope in _SCOPES)]
    return sorted({(one.groupId, one.artifactId, one.version) for one in found})


def main() -> None:
    """Resolve, fetch, hash and write."""
    with tempfile.TemporaryDirectory() as folder:
        names = resolved(Path(folder) / "repository")
        jars = [Jar(group, artifact, version, "") for group, artifact, version in names]
        problem = fetching.fetch_with_jgo(jars, Path(folder))
        if problem is not None:
            raise SystemExit(problem)
        lines = [
            f"{jar}  sha256:{hashlib.sha256((Path(folder) / jar.name).read_bytes()).hexdigest()}\n"
            for jar in jars
        ]
    LOCK.write_text(_HEAD + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
