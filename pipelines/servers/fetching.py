"""Fetching locked jars from the repositories that the user has configured.

Maven fetches them if ``mvn`` is on the PATH. Otherwise, or if it fails (which is logged), jgo does,
which is a Python package. Nothing is resolved: the lock names every jar, and these are fetched
without what they depend on.

Maven reads the user's settings itself. jgo knows nothing of them, so `maven_settings` reads the
mirror, its user and the local repository from them. jgo asks the repositories of its own
configuration file too. Jars of the local repository are copied; jgo writes nothing there.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from tidemill.features.errors import JarsMissing
from tidemill.pipelines.servers.locked_jars import Jar
from tidemill.pipelines.servers.maven_settings import central, local_repository, read_settings

_LOG: Final = logging.getLogger(__name__)
_LIMIT_S: Final = 900.0
_ANSWER_S: Final = 60
_AT_ONCE: Final = 4
_REMEDY: Final = (
    "check the network, or name a mirror in the Maven settings (~/.m2/settings.xml), and run the "
    "same command again"
)


def fetch(jars: Sequence[Jar], folder: Path) -> None:
    """Put jars into a folder; their hashes are not checked here.

    Args:
        jars: The jars.
        folder: An empty folder.

    Raises:
        JarsMissing: Neither Maven nor jgo could fetch them.
    """
    maven = shutil.which("mvn")
    problem = "mvn is not on the PATH" if maven is None else fetch_with_maven(maven, jars, folder)
    if problem is None:
        return
    if maven is not None:
        _LOG.warning("%s; trying jgo instead", problem)
    also = fetch_with_jgo(jars, folder)
    if also is not None:
        raise JarsMissing(f"the jars cannot be fetched: {problem}; {also}; {_REMEDY}")


def fetch_with_maven(maven: str, jars: Sequence[Jar], folder: Path) -> str | None:
    """Fetch jars with Maven.

    Returns:
        What went wrong; None if all are there.
    """
    project = folder / "pom.xml"
    project.write_text(project_of(jars), encoding="utf-8")
    command = [maven, "--batch-mode", "--quiet", "--file", str(project)]
    command += ["dependency:copy-dependencies", "-DexcludeTransitive=true"]
    try:
        ended = subprocess.run(
            [*command, f"-DoutputDirectory={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{maven} failed: {error}"
    finally:
        project.unlink()
    if ended.returncode != 0:
        said = " ".join(ended.stdout.decode(errors="replace").split())
        return f"{maven} failed with status {ended.returncode}: {said[:400]}"
    return None


def project_of(jars: Sequence[Jar]) -> str:
    """Return a Maven project that depends on jars."""
    dependencies = "".join(
        f"<dependency><groupId>{escape(jar.group)}</groupId>"
        f"<artifactId>{escape(jar.artifact)}</artifactId>"
        f"<version>{escape(jar.version)}</version></dependency>\n"
        for jar in jars
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0">\n'
        "<modelVersion>4.0.0</modelVersion>\n"
        "<groupId>tidemill</groupId><artifactId>servers</artifactId><version>1</version>\n"
        f"<dependencies>\n{dependencies}</dependencies>\n</project>\n"
    )


def fetch_with_jgo(jars: Sequence[Jar], folder: Path) -> str | None:
    """Fetch jars with jgo, a few at once.

    Returns:
        What went wrong; None if all are there.
    """
    try:
        from jgo.maven import MavenContext
    except ImportError:
        return "jgo is not installed (`pip install 'tidemill[servers]'`)"
    kept = folder / ".repository"
    context = MavenContext(
        repo_cache=kept,
        local_repos=[local_repository(read_settings())],
        remote_repos=repositories(),
        timeout=_ANSWER_S,
    )

    def fetch_one(jar: Jar) -> str | None:
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        try:
            shutil.copyfile(artifact.resolve(), folder / jar.name)
        except (OSError, RuntimeError) as error:
            # The text of the error may hold the password of a mirror.
            return f"jgo cannot fetch {jar} ({type(error).__name__})"
        return None

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            problems = [problem for problem in pool.map(fetch_one, jars) if problem]
    finally:
        shutil.rmtree(kept, ignore_errors=True)
    return problems[0] if problems else None


def repositories() -> dict[str, str]:
    """Return the URLs of the repositories that jgo asks, by name.

    It has a URL of its own for Maven's central repository. The mirror of the user's Maven settings
    replaces that, and the repositories of jgo's configuration file replace or complete both.

    Raises:
        JarsMissing: The Maven settings cannot be used.
    """
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    mirror = central(read_settings())
    mirrored = {} if mirror is None else {"central": mirror}
    return {**MavenContext().remote_repos, **mirrored, **GlobalSettings.load().repositories}
