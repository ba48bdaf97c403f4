"""Registering in a process that dies, with concurrent others, and with damaged registries."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from feast.infra.registry.registry import Registry
from feast.infra.registry.sql import SqlRegistry as FeastSqlRegistry

from tests.support import parcels, versions
from tests.support.parcels import BY_DEPOT
from tests.support.versions import (
    NEW,
    OLD,
    WIDER,
    apply,
    client,
    contents,
    depot,
    publish,
    publish_courier,
    read,
    registered_names,
)
from tidemill import count
from tidemill.features.errors import ConfigurationError, StoreError
from tidemill.serving.online.backends import open_database
from tidemill.serving.registry import registration
from tidemill.serving.registry.registration import open_store, plan_project
from tidemill.serving.registry.state import read_registered
from tidemill.serving.stores.online_places import default_place
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import RegistryPlace, SqlRegistry, default_registry

place, root = versions.any_place, versions.root

FORK = multiprocessing.get_context("fork")


def test_plan_changes_nothing(root: Path, place: RegistryPlace) -> None:
    preview = plan_project(OLD, StorePlaces.below(root, registry=place))
    assert len(preview.registers) == 5
    assert list(root.iterdir()) == []
    apply(OLD, root, place)
    open_database(default_place(root)).close()
    before = {path: path.read_bytes() for path in root.rglob("*.db")}
    assert plan_project(NEW, StorePlaces.below(root, registry=place)).registers == (
        "write feature view by_depot__v2",
        "write feature service parcels__next",
    )
    assert {path: path.read_bytes() for path in root.rglob("*.db")} == before


def test_what_was_not_shown_is_not_done(root: Path, place: RegistryPlace) -> None:
    shown = plan_project(NEW, StorePlaces.below(root, registry=place))
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    with pytest.raises(StoreError, match="another process registered project 'parcels'"):
        apply(NEW, root, place, shown=shown)
    shown = plan_project(NEW, StorePlaces.below(root, registry=place))
    publish(root, BY_DEPOT, 5)  # a publication in between does not change the plan
    apply(NEW, root, place, shown=shown)


def _killed(work: Callable[[], object]) -> int | None:
    """Run in a process of its own that may kill itself; return its exit status."""
    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def _die(*_arguments: Any, **_options: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "step", ["before key spaces", "before the registry", "within the registry", "at the end"]
)
@pytest.mark.parametrize("promoting", [False, True], ids=["register", "promote"])
def test_killed_between_steps_goes_on_from_there(
    root: Path, place: RegistryPlace, step: str, promoting: bool
) -> None:
    open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")
    publish_courier(root)
    publish(root, BY_DEPOT, 5)
    if promoting:
        apply(NEW, root, place)
        publish(root, WIDER, 8)
    before = contents(client(root, place))
    open_database(default_place(root)).close()

    def work() -> None:
        if step == "before key spaces":
            registration.make_spaces = _die
        elif step == "before the registry":
            registration.write_entries = _die
        elif step == "within the registry":
            # Written last: the views are registered already.
            Registry.apply_feature_service = FeastSqlRegistry.apply_feature_service = _die
        else:
            os.fsync = _die  # the new file is written and not yet in place
            sqlalchemy.Connection.commit = _die
        apply(NEW, root, place, promote=promoting)

    assert _killed(work) == -signal.SIGKILL
    stock = client(root, place)
    assert contents(stock) == before
    assert read(stock, "by_depot:scans_1d") == [5]

    apply(NEW, root, place, promote=promoting)
    publish(root, WIDER, 8)
    assert read(client(root, place), "by_depot__v2:scans_1d") == [8]
    assert read(client(root, place), "by_depot:scans_1d") == [8 if promoting else 5]


def test_two_at_once_lose_nothing(root: Path, place: RegistryPlace) -> None:
    open_store(parcels.project(BY_DEPOT), StorePlaces.below(root, registry=place), clock="replay")
    open_database(default_place(root)).close()
    windows = range(2, 8)

    def work(days: int) -> Callable[[], None]:
        view = depot(scans_1d=count(over=f"{days}d"))
        return lambda: apply(parcels.project(view), root, place)

    processes = [FORK.Process(target=work(days)) for days in windows]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    views = read_registered(client(root, place)).views
    assert sorted(view.version for view in views) == [1, *windows]
    hashes = {depot(scans_1d=count(over=f"{days}d")).hash for days in (1, *windows)}
    assert {view.definition for view in views} == hashes


def test_first_registration_of_two_at_once(root: Path, place: RegistryPlace) -> None:
    def work() -> None:
        open_store(OLD, StorePlaces.below(root, registry=place), clock="replay")

    processes = [FORK.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert registered_names(client(root, place)) == {"by_courier", "by_depot"}


def test_registry_that_is_none_is_named(root: Path) -> None:
    (root / "registry.db").write_bytes(b"\xff\xff\xff")
    with pytest.raises(StoreError, match=r"registry\.db is no registry of Feast's"):
        open_store(OLD, StorePlaces.below(root), clock="wall")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"hop_us"', b'"hop_us~'),  # no JSON any more
        (b'"hop_us"', b'"hop_uz"'),  # JSON, but of another definition
        (b"tidemill_max_staleness_us", b"tidemill_max_staleness_uz"),
    ],
)
def test_registered_views_that_were_changed_are_named(
    root: Path, before: bytes, after: bytes
) -> None:
    apply(OLD, root, default_registry(root))
    file = root / "registry.db"
    file.write_bytes(file.read_bytes().replace(before, after))
    named = r"the registry: the tags of feature view 'by_\w+' were changed .*`tidemill apply`"
    with pytest.raises(StoreError, match=named):
        plan_project(NEW, StorePlaces.below(root))


def test_environment_variable_that_is_not_set_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SqlRegistry(url_env="PARCELS_REGISTRY")
    with pytest.raises(ConfigurationError, match="PARCELS_REGISTRY is not set"):
        open_store(OLD, StorePlaces.below(root, registry=place), clock="wall")
    secret = "mysql://feast:hunter2@db/feast"
    monkeypatch.setenv("PARCELS_REGISTRY", secret)
    with pytest.raises(ConfigurationError, match="holds a URL of mysql") as error:
        open_store(OLD, StorePlaces.below(root, registry=place), clock="wall")
    assert "hunter2" not in str(error.value)
    monkeypatch.setenv("PARCELS_REGISTRY", f"sqlite:///{root / 'secret.db'}")
    open_store(OLD, StorePlaces.below(root, registry=place), clock="wall")
    assert (root / "secret.db").exists()
