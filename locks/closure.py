"""Whether a lock is closed: all that its distributions require is in it, at a version that fits.

A closed lock is installed without resolving anything, so that no release of another day can get in
(`Makefile`: ``uv pip sync``). What a distribution requires stands in its metadata, and metadata are
at hand only for what is installed: `requires.json` has them for the whole lock, written by
`locks.record`. Markers and extras are evaluated as PEP 508 says, for each environment of
`ENVIRONMENTS`, whatever this machine is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final

from packaging.markers import Environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE: Final = Path(__file__).parent
RUN: Final = HERE / "run.lock"
"""What Tidemill and the examples need to run: all that ``make demo`` installs."""
DEVELOP: Final = HERE / "develop.lock"
"""That and what tests, linters and benchmarks need: what ``make test`` installs."""
REQUIRES: Final = HERE / "requires.json"
"""What each distribution of `DEVELOP` requires, by ``NAME==VERSION``."""

RUN_EXTRAS: Final = ("examples", "servers")
DEVELOP_EXTRAS: Final = ("examples", "servers", "test", "bench")
"""The extras of setup.py that a lock holds beside what is always required."""

# The first and a late release of each Python: some markers name a patch version.
_PYTHONS: Final = tuple(f"3.{minor}.{patch}" for minor in (11, 12, 13) for patch in (0, 99))
_PLATFORMS: Final = {
    "linux x86_64": ("linux", "Linux", "posix", "x86_64"),
    "linux aarch64": ("linux", "Linux", "posix", "aarch64"),
    "macos arm64": ("darwin", "Darwin", "posix", "arm64"),
    "macos x86_64": ("darwin", "Darwin", "posix", "x86_64"),
    "windows x86_64": ("win32", "Windows", "nt", "AMD64"),
}


def _environment(python: str, platform: str) -> Environment:
    sys_platform, system, os_name, machine = _PLATFORMS[platform]
    return Environment(
        implementation_name="cpython",
        implementation_version=python,
        os_name=os_name,
        platform_machine=machine,
        platform_python_implementation="CPython",
        platform_release="",
        platform_system=system,
        platform_version="",
        python_full_version=python,
        python_version=python.rpartition(".")[0],
        sys_platform=sys_platform,
    )


ENVIRONMENTS: Final[Mapping[str, Environment]] = {
    f"{python} {platform}": _environment(python, platform)
    for python, platform in product(_PYTHONS, _PLATFORMS)
}
"""Where the lock may be installed, by Python and platform."""


@dataclass(frozen=True)
class Locked:
    """One entry of a lock.

    Attributes:
        requirement: ``NAME==VERSION`` and the marker of the environments that it is for.
        hashes: What its files may hash to.
    """

    requirement: Requirement
    hashes: frozenset[str]

    @property
    def name(self) -> str:
        """The normalized name."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> Version:
        """The one version."""
        (specifier,) = self.requirement.specifier
        return Version(specifier.version)

    @property
    def key(self) -> str:
        """Its key in `REQUIRES`."""
        return f"{self.name}=={self.version}"

    def is_for(self, environment: Mapping[str, Any]) -> bool:
        """Tell whether it is installed in an environment."""
        marker = self.requirement.marker
        return marker is None or marker.evaluate(dict(environment))


@dataclass(frozen=True)
class Metadata:
    """What a distribution says of itself.

    Attributes:
        python: The Pythons it runs on, ``>=3.10``; empty for any.
        requires: Its requirements, those of its extras among them, sorted.
    """

    python: str
    requires: tuple[str, ...]


def read_lock(path: Path) -> list[Locked]:
    """Read a lock: pip's format, each entry with its hashes on the lines after it."""
    text = path.read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line and not line.startswith(("#", " ")):
            requirement, *hashes = line.split("--hash=")
            entry = Locked(Requirement(requirement), frozenset(map(str.strip, hashes)))
            found.append(entry)
    return found


def read_requires(path: Path = REQUIRES) -> dict[str, Metadata]:
    """Read what `locks.record` wrote."""
    return {
        key: Metadata(found["python"], tuple(found["requires"]))
        for key, found in json.loads(path.read_text()).items()
    }


# Most requirements are read again for every environment.
_parsed = cache(Requirement)


@dataclass(frozen=True)
class Walk:
    """What a project's requirements lead to in one environment.

    Attributes:
        reached: The entries of the lock that they lead to, by key.
        lacking: A sentence for each requirement that the lock does not meet.
    """

    reached: frozenset[str]
    lacking: tuple[str, ...]


def walk(
    lock: Iterable[Locked],
    requires: Mapping[str, Metadata],
    project: Metadata,
    extras: Sequence[str],
    environment: Mapping[str, str],
) -> Walk:
    """Follow the requirements of a project through a lock, extras included.

    Args:
        lock: The lock.
        requires: What its distributions require.
        project: What the project requires.
        extras: The project's extras that the lock was made for.
        environment: The values of the markers.
    """
    installed: dict[str, list[Locked]] = {}
    for entry in lock:
        if entry.is_for(environment):
            installed.setdefault(entry.name, []).append(entry)
    lacking = {
        f"{name} is locked at {len(entries)} versions"
        for name, entries in installed.items()
        if len(entries) > 1
    }
    pending = [("setup.py", text, of) for of in ("", *extras) for text in project.requires]
    seen: set[tuple[str, str]] = set()
    reached = set()
    while pending:
        source, text, extra = pending.pop()
        requirement = _parsed(text)
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in installed:
            lacking.add(f"{source} requires {text}, which is not in the lock")
            continue
        entry = installed[name][0]
        metadata = requires[entry.key]
        reached.add(entry.key)
        if not requirement.specifier.contains(entry.version, prereleases=True):
            lacking.add(f"{source} requires {text}, locked is {entry.version}")
        if not SpecifierSet(metadata.python).contains(environment["python_full_version"]):
            lacking.add(f"{entry.key} runs on Python {metadata.python} only")
        for of in {"", *requirement.extras} - {known for at, known in seen if at == name}:
            seen.add((name, of))
            pending += [(entry.key, text, of) for text in metadata.requires]
    return Walk(frozenset(reached), tuple(sorted(lacking)))
