"""The locks are closed on every Python and platform, so installing them resolves nothing."""

from __future__ import annotations

import sys
import tomllib
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from locks import record
from locks.closure import (
    DEVELOP,
    DEVELOP_EXTRAS,
    ENVIRONMENTS,
    RUN,
    RUN_EXTRAS,
    Locked,
    Metadata,
    Walk,
    read_lock,
    read_requires,
    walk,
)

ROOT = Path(__file__).parents[2]
PROJECT = record.metadata_of(distribution("tidemill"))
LOCKS = {RUN: RUN_EXTRAS, DEVELOP: DEVELOP_EXTRAS}
LINUX = ENVIRONMENTS["3.11.0 linux x86_64"]

read, recorded = cache(read_lock), cache(read_requires)


@cache
def walked(lock: Path, environment: str) -> Walk:
    return walk(read(lock), recorded(), PROJECT, LOCKS[lock], ENVIRONMENTS[environment])


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_all_that_is_required_is_locked(lock: Path, environment: str) -> None:
    assert walked(lock, environment).lacking == ()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_nothing_is_locked_that_is_not_required(lock: Path) -> None:
    # So a newcomer's first command waits for no linter, no type stubs and no peer of a benchmark,
    # unless a library that runs asks for them.
    reached = {key for name in ENVIRONMENTS for key in walked(lock, name).reached}
    assert {entry.key for entry in read(lock)} - reached == set()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_development_adds_to_what_runs_and_changes_nothing(environment: str) -> None:
    run, develop = (
        {e.key: e.hashes for e in read(lock) if e.is_for(ENVIRONMENTS[environment])}
        for lock in LOCKS
    )
    assert run.items() <= develop.items()


def test_tools_that_build_are_locked_with_what_runs() -> None:
    # Source archives, and our own package, are built with these and not with those of the day.
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = {entry.name: entry for entry in read(RUN)}
    for requirement in map(Requirement, needed):
        assert locked[requirement.name].requirement.marker is None
        assert locked[requirement.name].version in requirement.specifier


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_locked_distribution_has_hashes_and_requirements_on_record(lock: Path) -> None:
    for entry in read(lock):
        assert entry.hashes, entry.key
        assert entry.key in recorded()


def test_record_holds_the_lock_and_nothing_else() -> None:
    assert recorded().keys() == {entry.key for entry in read(DEVELOP)}


def test_what_is_installed_is_what_is_locked_and_says_what_is_on_record() -> None:
    here = record.installed_in(sys.path)
    wanted = {e.key for e in read(DEVELOP) if e.is_for(default_environment())}
    assert {key: here.get(key) for key in wanted} == {key: recorded()[key] for key in wanted}


def locked(text: str) -> Locked:
    return Locked(Requirement(text), frozenset({"sha256:0"}))


def test_extra_of_a_locked_distribution_is_followed() -> None:
    # What broke once: pip met `auth[tls]` again while installing, and took a newer release.
    lock = [locked("client==1.0"), locked("auth==2.0")]
    requires = {
        "client==1.0": Metadata("", ("auth[tls]>=2",)),
        "auth==2.0": Metadata("", ('tls>=3; extra == "tls"', 'docs; extra == "docs"')),
    }
    project = Metadata("", ("client",))
    found = walk(lock, requires, project, (), LINUX)
    assert found.lacking == ('auth==2.0 requires tls>=3; extra == "tls", which is not in the lock',)
    lock.append(locked("tls==3.1"))
    requires["tls==3.1"] = Metadata("", ())
    assert walk(lock, requires, project, (), LINUX).lacking == ()


@pytest.mark.parametrize(
    ("lock", "asked", "message"),
    [
        ("a==1.0", "a>=2", "setup.py requires a>=2, locked is 1.0"),
        ("a==1.0; sys_platform == 'win32'", "a", "setup.py requires a, which is not in the lock"),
        ("a==1.0", "a; python_version < '3.12'", None),
        ("b==1.0", "a; python_version >= '3.12'", None),
        ("A.b==2.0rc1", "a-b>=1", None),
        ("b==1.0", "a; extra == 'gcp'", None),
        ("b==1.0", 'a; extra == "test"', 'setup.py requires a; extra == "test", which is not'),
        ("old==1.0", "old", "old==1.0 runs on Python <3.11 only"),
    ],
)
def test_lock_that_is_open_is_told(lock: str, asked: str, message: str | None) -> None:
    entry = locked(lock)
    requires = {entry.key: Metadata("<3.11" if entry.name == "old" else "", ())}
    found = walk([entry], requires, Metadata("", (asked,)), ("test",), LINUX).lacking
    assert [message] == [said[: len(message or "")] for said in found] if message else not found


def test_two_versions_in_one_environment_are_told() -> None:
    lock = [locked("a==1.0; python_version < '3.13'"), locked("a==2.0")]
    requires = {"a==1.0": Metadata("", ()), "a==2.0": Metadata("", ())}
    found = walk(lock, requires, Metadata("", ("a",)), (), LINUX)
    assert found.lacking == ("a is locked at 2 versions",)
