"""Forgetting an entity of a stream that reads and writes topics, with Redis and an archive.

The command is killed wherever it may be, again and again, on the same root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.kafka_broker import TestBroker
from tests.support.killed_fork import killed_at, steps_of
from tests.support.live_project import LiveProject
from tests.support.redis_server import RedisServer, running
from tests.support.searched import redis_keys_with, where_found
from tidemill.features.errors import StateMismatch, StoreUnavailable
from tidemill.pipelines.archive.archiving import WORK as ARCHIVE_WORK
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.forget.forget import finish, forget
from tidemill.pipelines.forget.record import FORGOTTEN, ForgetRecord, check_finished, read_records
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.read_features import read_features
from tidemill.serving.online.fills import Fill
from tidemill.serving.online.reader import STATUS
from tidemill.serving.online.redis.database import RedisDatabase

CARD: Final = "kärtchen-4711"
"""A key that nothing else contains, and that JSON may write in two ways."""
NEVER: Final = 1_000_000
"""The number of a step that is not reached."""
_OF_STORE: Final = "rows of the online store"


class Cards(LiveProject):
    """A live project in which one card has a name of its own."""

    def _payment(self, name: str, at_us: int) -> dict[str, Any]:
        return _renamed(super()._payment(name, at_us))

    def _check(self, name: str, at_us: int) -> dict[str, Any]:
        return _renamed(super()._check(name, at_us))

    def configure(self, server: RedisServer) -> None:
        """Let features go to Redis, and rows to an archive."""
        path = self.folder / "tidemill.yaml"
        redis = f"{{type: redis, host: {server.place.host}, port: {server.port}}}"
        text = path.read_text().replace("{type: sqlite, path: online.db}", redis)
        path.write_text(text + "archive: {folder: archive}\n")

    def config(self) -> Configuration:
        return load(self.folder / "tidemill.yaml")

    def send_what_is_wrong(self) -> None:
        """Send rows of the card that come twice or too late, and messages that no row is in."""
        payment = self.row_of_now("payments", "twice") | {"card": CARD}
        check = self.row_of_now("checks", "too-late") | {"card": CARD}
        old = {"paid_at": "1999-01-01T00:00:00Z", "payment": "old"}
        self.send_raw("payments", [_json(payment), _json(payment), _json(payment | old)])
        self.send_raw("payments", [_json(payment)[:-1], b"\xff" + _json(payment)])
        self.send_raw("checks", [_json(check | {"asked_at": "1999-01-01T00:00:00Z"})])


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "card": CARD} if row["card"] == "c-1" else row


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path / "redis", {"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


def test_a_card_is_forgotten_whatever_kills_the_command(
    tmp_path: Path, broker: TestBroker, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Cards(tmp_path / "project", broker, sinks=True, savepoint_every="3s")
    project.configure(server)
    project.run("backfill")
    with project.streaming() as process:
        project.produce(120, 40)
        project.wait_for(20, process)
        project.send_what_is_wrong()
        project.produce(60, 20)
        project.wait_for(60, process)
        project.drain(process)
    project.run("verify", "--follow", "--once")
    config = project.config()
    client = server.client()
    assert redis_keys_with(client, CARD)
    places = where_found(project.folder, CARD)
    assert {place.split("/")[0] for place in places} >= {"archive", "run"}

    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing here loses its power
    kill_again_and_again(config, server, tmp_path / "apart")
    (record,) = read_records(config.root)
    assert where_found(config.root, CARD) == where_found(project.folder / "archive", CARD) == []
    assert redis_keys_with(client, CARD) == []
    assert any(project.topics["predictions"] in one for one in record.remains)
    assert statuses(config) == ["NOT_FOUND", "PRESENT"]
    project.verify()
    # The card comes again, as one that nobody has seen, and everything goes on.
    answered = len(project.predictions())
    with project.streaming("--resume") as process:
        project.produce(40, 40)
        project.wait_for(answered + 40, process)
        project.drain(process)
    assert redis_keys_with(client, CARD)
    assert statuses(config) == ["PRESENT", "PRESENT"]
    project.run("backfill")
    again = forgotten(config)
    assert again["removed"]["rows of logs"] > record.removed["rows of logs"] > 20
    assert where_found(config.root, CARD) == where_found(project.folder / "archive", CARD) == []
    assert redis_keys_with(client, CARD) == []
    project.verify()


def kill_again_and_again(config: Configuration, server: RedisServer, folder: Path) -> None:
    """Forget the card: the command is killed before, amid and after what it does, on one root."""
    apart = copied(config, folder)
    steps = steps_of(partial(in_a_store_that, _does_nothing, partial(forgotten, apart)))
    planned = next(number for number, step in enumerate(steps, 1) if "plan.json" in step)
    again, go_on = partial(forgotten, config), partial(finish, config, QuietProgress())
    before = contents(config)
    for step in (planned // 3, planned - 1):
        killed_at(step, again)
        assert contents(config) == before
        check_finished(config.root)
    server.kill()
    with pytest.raises(StoreUnavailable):
        again()  # nothing is begun with a store that is away
    assert contents(config) == before
    server.start()
    killed_at(planned + 2, again)
    killed_at(10, go_on)
    server.kill()
    for _ in range(2):
        with pytest.raises(StateMismatch, match="run `tidemill forget --finish`"):
            check_finished(config.root)
        with pytest.raises(StoreUnavailable):
            go_on()
    server.start()
    for dying in (_dies, _removes_and_dies):
        killed_at(NEVER, partial(in_a_store_that, dying, go_on))
        with pytest.raises(StateMismatch, match="run `tidemill forget --finish`"):
            check_finished(config.root)
    go_on()
    # The same end as that of a command that nothing has killed.
    (killed,), (whole,) = read_records(config.root), read_records(apart.root)
    assert (killed.rows, killed.refused) == (whole.rows, whole.refused)
    assert killed.removed[_OF_STORE] == 0  # a kill came between, and counted nothing
    assert dict(killed.removed) == {**whole.removed, _OF_STORE: 0}
    assert below(killed, config) == below(whole, apart)


def below(record: ForgetRecord, config: Configuration) -> dict[str, Sequence[str]]:
    """Return the files of a record with their digests, those of the archive by their names."""
    assert config.archive is not None
    folder = f"{config.archive.folder.absolute()}/"
    return {path.removeprefix(folder): digests for path, digests in record.files.items()}


def forgotten(config: Configuration) -> dict[str, Any]:
    return forget(config, "card", CARD, QuietProgress())


Removing = Callable[[RedisDatabase, Sequence[Fill], Sequence[bytes]], int]
_removing: Final = RedisDatabase.forget


def in_a_store_that(removes: Removing, work: Callable[[], object]) -> None:
    """Do some work, in a process of its own, with another removal of rows."""
    setattr(RedisDatabase, "forget", removes)  # noqa: B010
    work()


def _does_nothing(database: RedisDatabase, fills: Sequence[Fill], keys: Sequence[bytes]) -> int:
    return 0


def _dies(database: RedisDatabase, fills: Sequence[Fill], keys: Sequence[bytes]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _removes_and_dies(database: RedisDatabase, fills: Sequence[Fill], keys: Sequence[bytes]) -> int:
    assert _removing(database, fills, keys)
    return _dies(database, fills, keys)


def copied(config: Configuration, folder: Path) -> Configuration:
    """Return the configuration of a copy of root and archive; the store is the same one."""
    assert config.archive is not None
    shutil.copytree(config.root, folder / "run")
    shutil.copytree(config.archive.folder, folder / "archive")
    archive = replace(config.archive, folder=folder / "archive")
    return replace(config, root=folder / "run", archive=archive)


def contents(config: Configuration) -> dict[str, bytes]:
    """Return the bytes of all files of root and archive, but for locks and the work itself."""
    assert config.archive is not None
    return {
        str(path): path.read_bytes()
        for folder in (config.root, config.archive.folder)
        for path in folder.rglob("*")
        if path.is_file()
        and not {FORGOTTEN, ARCHIVE_WORK} & {*path.parts}
        and not path.name.endswith("lock")
    }


def statuses(config: Configuration) -> list[str]:
    """Return what readers of the online store are told of the card, and of another one."""
    rows = read_features(config.project, config.online_store, "by_card", [CARD, "c-2"])
    found: list[str] = rows.column(STATUS).to_pylist()
    return found
