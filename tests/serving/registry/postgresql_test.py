"""A registry in PostgreSQL: its password, lock and server. Other tests run on every place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import feast
import pytest
import sqlalchemy

from tests.support import parcels
from tests.support.parcels import BY_DEPOT
from tests.support.postgresql_server import PostgresqlServer
from tests.support.versions import NEW, OLD, client, keep_client, publish, read, registered_names
from tidemill.features.errors import ConfigurationError, StoreError
from tidemill.serving.registry.registration import apply_project, plan_project
from tidemill.serving.stores.feast_config import write_feature_store_yaml
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import SqlRegistry, registry_lock

VARIABLE = "PARCELS_REGISTRY"
PLACE = SqlRegistry(url_env=VARIABLE)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def url(postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlalchemy.URL]:
    """The URL of an empty database; the environment has it too."""
    with postgresql.database() as made:
        monkeypatch.setenv(VARIABLE, made)
        yield sqlalchemy.make_url(made)


def places(root: Path) -> StorePlaces:
    """The places below a root, with the registry in PostgreSQL."""
    return StorePlaces.below(root, registry=PLACE)


def shown(url: sqlalchemy.URL) -> str:
    return url.render_as_string(hide_password=False)


def test_password_stays_in_the_environment(tmp_path: Path, url: sqlalchemy.URL) -> None:
    assert url.password
    apply_project(OLD, places(tmp_path))
    publish(tmp_path, BY_DEPOT, 5)
    file = write_feature_store_yaml(OLD.name, places(tmp_path), clock="replay")
    assert f"${{{VARIABLE}}}" in file.read_text()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert url.password.encode() not in written
    assert read(keep_client(feast.FeatureStore(repo_path=str(tmp_path))), "by_depot:scans_1d") == [
        5
    ]


def test_url_without_a_driver_gets_feasts_own_and_no_warning(
    tmp_path: Path, url: sqlalchemy.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, shown(url.set(drivername="postgresql")))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*psycopg.*")
        apply_project(OLD, places(tmp_path))
    assert registered_names(client(tmp_path, PLACE)) == {"by_courier", "by_depot"}


def test_plan_makes_no_table(
    tmp_path: Path, url: sqlalchemy.URL, postgresql: PostgresqlServer
) -> None:
    assert len(plan_project(OLD, places(tmp_path)).registers) == 5
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    assert sqlalchemy.inspect(engine).get_table_names() == []


def test_projects_of_one_database_are_apart(tmp_path: Path, url: sqlalchemy.URL) -> None:
    other = type(OLD)("other_parcels", request=OLD.request, views=[BY_DEPOT])
    apply_project(OLD, places(tmp_path / "one"))
    preview = apply_project(other, places(tmp_path / "two"))
    assert "write feature view by_depot" in preview.registers
    assert registered_names(client(tmp_path / "one", PLACE)) == {"by_courier", "by_depot"}
    assert registered_names(client(tmp_path / "two", PLACE, other)) == {"by_depot"}


def waiting(url: sqlalchemy.URL) -> int:
    """Number of sessions that wait for an advisory lock of the database."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    asked = sqlalchemy.text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with engine.connect() as connection:
        return int(connection.execute(asked).scalar_one())


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_second_writer_waits_for_the_first_and_sees_what_it_wrote(
    tmp_path: Path, url: sqlalchemy.URL
) -> None:
    apply_project(OLD, places(tmp_path))
    seen: list[tuple[str, ...]] = []

    def second() -> None:
        seen.append(apply_project(NEW, places(tmp_path)).registers)

    with registry_lock(PLACE):
        writer = threading.Thread(target=second)
        writer.start()
        wait_until(lambda: waiting(url) == 1)
        assert seen == []
        assert registered_names(client(tmp_path, PLACE)) == {"by_courier", "by_depot"}
    writer.join(60)
    assert seen == [("write feature view by_depot__v2", "write feature service parcels__next")]
    assert "by_depot__v2" in registered_names(client(tmp_path, PLACE))


def test_death_of_a_writer_frees_the_lock(tmp_path: Path, url: sqlalchemy.URL) -> None:
    apply_project(OLD, places(tmp_path))
    heard, told = FORK.Pipe(duplex=False)

    def holds_for_ever() -> None:
        with registry_lock(PLACE):
            told.send("held")
            signal.pause()

    holder = FORK.Process(target=holds_for_ever)
    holder.start()
    assert heard.recv() == "held"
    writer = FORK.Process(target=apply_project, args=(NEW, places(tmp_path)))
    writer.start()
    wait_until(lambda: waiting(url) == 1)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    writer.join(60)
    assert writer.exitcode == 0
    assert "by_depot__v2" in registered_names(client(tmp_path, PLACE))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "hunter2"}, "password authentication failed"),
        ({"database": "no_such_database"}, 'database "no_such_database" does not exist'),
        ({"host": "127.0.0.1", "port": 1, "query": {}}, "onnection refused"),
    ],
    ids=["wrong password", "no database", "no server"],
)
def test_registry_that_cannot_be_opened_is_named_without_its_password(
    tmp_path: Path,
    url: sqlalchemy.URL,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    said: str,
) -> None:
    wrong = url.set(**changes)
    monkeypatch.setenv(VARIABLE, shown(wrong))
    for work in (plan_project, apply_project):
        with pytest.raises(StoreError, match=rf"registry \${VARIABLE} cannot be opened") as caught:
            work(parcels.PARCELS, places(tmp_path))
        assert said in str(caught.value)
        assert str(wrong.password) not in str(caught.value)


def test_driver_that_is_missing_is_named(
    tmp_path: Path, url: sqlalchemy.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, shown(url.set(drivername="postgresql+asyncpg")))
    with pytest.raises(ConfigurationError, match=r"driver 'asyncpg' is not .*psycopg\[binary\]"):
        apply_project(OLD, places(tmp_path))
