"""Writes the locks of the servers' jars anew: ``python -m locks.jars``.

To change Kafka's version, change `ROOTS` and `examples/compose.yaml`; to change Flink's,
`FLINK_ROOTS` and the Beam of `setup.py`. Run this, and read the difference. The hashes are those of
the jars that are fetched from the repositories that this user has configured.

jgo resolves what Kafka needs, as Maven does. Beam's project files manage versions in ways that only
Maven follows, so Flink's jars need ``mvn``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from jgo.maven import MavenContext

from tidemill.pipelines.servers import fetching
from tidemill.pipelines.servers.locked_jars import FLINK, KAFKA, Jar, JarLock
from tidemill.pipelines.servers.maven_settings import local_repository, read_settings

ROOTS: Final = ("org.apache.kafka:kafka_2.13:4.1.1", "org.slf4j:slf4j-simple:1.7.36")
"""The broker, and what writes its log messages to standard error."""

_FLINK_VERSION: Final = "1.19.3"
_OF_FLINK: Final = (
    "flink-annotations flink-clients flink-connector-datagen flink-core flink-file-sink-common "
    "flink-hadoop-fs flink-java flink-metrics-core flink-optimizer "
    "flink-queryable-state-client-java flink-rpc-akka-loader flink-rpc-core flink-runtime "
    "flink-streaming-java"
)
FLINK_ROOTS: Final = (
    "org.apache.beam:beam-runners-flink-1.19:2.62.0",
    "org.slf4j:slf4j-simple:1.7.30",
    *(f"org.apache.flink:{name}:{_FLINK_VERSION}" for name in _OF_FLINK.split()),
)
"""Beam's job server, which brings Flink 1.19.0; Flink's own parts, of its last corrections; and
what writes log messages to standard error."""

_SCOPES: Final = ("compile", "runtime")
_LIMIT_S: Final = 900.0
_LISTED: Final = re.compile(r"^\s+([^\s:]+):([^\s:]+):jar:([^\s:]+):(?:compile|runtime)\b")


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


def resolved_by_maven(folder: Path) -> list[tuple[str, str, str]]:
    """Return `FLINK_ROOTS` and all that they need at run time, likewise.

    Args:
        folder: A folder for Maven's project file and its answer.
    """
    maven = shutil.which("mvn")
    if maven is None:
        raise SystemExit("Flink's jars are resolved by Maven: put mvn on the PATH")
    folder.mkdir()
    roots = [Jar(*root.split(":"), "") for root in FLINK_ROOTS]
    project, answer = folder / "pom.xml", folder / "list.txt"
    project.write_text(fetching.project_of(roots), encoding="utf-8")
    subprocess.run(
        [maven, "--batch-mode", "--quiet", "--file", str(project), "dependency:list",
         "-DincludeScope=runtime", f"-DoutputFile={answer}"],
        check=True,
        timeout=_LIMIT_S,
    )  # fmt: skip
    lines = (_LISTED.match(line) for line in answer.read_text(encoding="utf-8").splitlines())
    return sorted(
        (group, artifact, version) for group, artifact, version in (m.groups() for m in lines if m)
    )


def write(
    lock: JarLock,
    resolve: Callable[[Path], Sequence[tuple[str, str, str]]],
) -> None:
    """Resolve, fetch, hash and write the jars of a server."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = resolve(folder / "repository")
        jars = [Jar(group, artifact, version, "") for group, artifact, version in names]
        fetching.fetch(jars, folder)
        lines = [
            f"{jar}  sha256:{hashlib.sha256((folder / jar.name).read_bytes()).hexdigest()}\n"
            for jar in jars
        ]
    head = (
        f"# {lock.server}'s jars, those of the coordinates in locks/jars.py and of all that they "
        "need at run time.\n"
        "# Written by `python -m locks.jars`: one jar a line, GROUP:ARTIFACT:VERSION and its "
        "hash.\n"
    )
    lock.path.write_text(head + "".join(lines), encoding="utf-8")


def main() -> None:
    """Write both locks."""
    write(KAFKA, resolved)
    write(FLINK, resolved_by_maven)


if __name__ == "__main__":
    main()
