"""Access to a Redis: TLS, ACL users, passwords, processes and threads."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.certificates import Certificate
from tests.support.parcels import COURIER_SPACE, DEPOT_SPACE
from tests.support.redis_server import RedisServer, free_port, running
from tidemill.features.errors import ConfigurationError, StoreError, StoreUnavailable
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.cells import encode_row
from tidemill.serving.online.redis.connections import exchange
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.rows import KeySpace, Row, RowBatch, online_keys
from tidemill.serving.registry.state import named_spaces
from tidemill.serving.stores.online_places import feast_section
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls

SECRET = "s3cret-of-the-test"

# What the online store needs, as docs/online-store.md names it.
NEEDED = (
    "~tm:* resetchannels -@all +ping +select +info +eval +evalsha +get +set +mget +mset "
    "+getrange +setrange +hmget +hget +hgetall +hset +hdel +hexists +exists "
    "+sadd +srem +smembers +scan +unlink +del"
)

READS = "+ping +select +eval +evalsha +get +mget +hmget +hexists"


@pytest.mark.parametrize("rights", [NEEDED.partition("-@all ")[2], READS])
def test_docs_name_the_rights(rights: str) -> None:
    page = Path(__file__).parents[4] / "docs" / "online-store.md"
    assert rights in " ".join(page.read_text().split())


def _row(key: int, time: int) -> Row:
    raw = online_keys("depot", pa.array([key]))[0]
    return Row(raw, time, 1, 10**15, 0, encode_row(DEPOT_SPACE.dtypes, [time]))


def _publish(database: RedisDatabase, time: int) -> int:
    return database.write(DEPOT_SPACE, RowBatch.of([_row(1, time)], 0))


def _standing(database: RedisDatabase) -> Row | None:
    return database.read([(DEPOT_SPACE, [_row(1, 0).key])])[0].rows[0]


def _round_trip(place: RedisPlace) -> None:
    database = RedisDatabase(place)
    database.create([DEPOT_SPACE])
    _publish(database, 10)
    assert _standing(database) == _row(1, 10)
    database.drop([DEPOT_SPACE])
    assert database.spaces() == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path / "redis") as made:
        yield made


def test_tls_is_spoken_and_the_certificate_checked(tmp_path: Path) -> None:
    own = Certificate.made_in(tmp_path, "own")
    other = Certificate.made_in(tmp_path, "other")
    with running(tmp_path / "redis", tls=own) as server:
        place = server.place
        assert place.tls == RedisTls(ca=own.cert)
        assert place.name.startswith("online store rediss://127.0.0.1:")
        _round_trip(place)
        for tls in (RedisTls(ca=other.cert), RedisTls()):
            with pytest.raises(StoreError, match=r"by_depot.*TLS handshake failed \(.*self") as err:
                _publish(RedisDatabase(dataclasses.replace(place, tls=tls)), 10)
            assert not isinstance(err.value, StoreUnavailable)
        with pytest.raises(StoreError, match="a port that speaks TLS needs tls"):
            _publish(RedisDatabase(dataclasses.replace(place, tls=None)), 10)


def test_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    own = Certificate.made_in(tmp_path, "own", hosts=("redis.example",))
    with (
        running(tmp_path / "redis", tls=own) as server,
        pytest.raises(StoreError, match=r"TLS handshake failed \(.*IP address mismatch"),
    ):
        _publish(RedisDatabase(server.place), 10)


def test_server_may_ask_for_our_certificate(tmp_path: Path) -> None:
    own = Certificate.made_in(tmp_path, "own")
    with running(tmp_path / "redis", {"tls-auth-clients": "yes"}, tls=own) as server:
        with pytest.raises(StoreError, match=r"online store rediss://"):
            _publish(RedisDatabase(server.place), 10)
        _round_trip(dataclasses.replace(server.place, tls=RedisTls(own.cert, own.cert, own.key)))


def test_server_that_speaks_no_tls_is_named(server: RedisServer) -> None:
    place = dataclasses.replace(server.place, tls=RedisTls(), timeout_us=300_000)
    with pytest.raises(StoreError, match=r"no answer within 0\.3 s.*a port that speaks no TLS"):
        _publish(RedisDatabase(place), 10)


@pytest.mark.parametrize("way", ["environment", "file"])
def test_acl_user_with_the_rights_that_the_docs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    monkeypatch.setenv("PARCELS_PASSWORD", SECRET)
    with running(tmp_path / "redis", users=(f"tidemill on >{SECRET} {NEEDED}",)) as server:
        where = {"password_file": tmp_path / "password"}
        if way == "environment":
            where = {"password_env": "PARCELS_PASSWORD"}
        _round_trip(dataclasses.replace(server.place, username="tidemill", **where))


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    monkeypatch.setenv("PARCELS_PASSWORD", SECRET)
    monkeypatch.setenv("WRONG_PASSWORD", f"not {SECRET}")
    users = (
        f"tidemill on >{SECRET} {NEEDED}",
        f"reader on >{SECRET} ~tm:* -@all {READS}",
        f"elsewhere on >{SECRET} ~other:* +@all",
        f"narrow on >{SECRET} {NEEDED} -info",
        f"scriptless on >{SECRET} {NEEDED} -evalsha",
    )
    with running(tmp_path / "guarded", users=users) as server:
        _user(server, "tidemill").create([DEPOT_SPACE])
        yield server


def _user(server: RedisServer, name: str, env: str = "PARCELS_PASSWORD") -> RedisDatabase:
    return RedisDatabase(dataclasses.replace(server.place, username=name, password_env=env))


@pytest.mark.parametrize("name", ["reader", "elsewhere", "scriptless"])
def test_user_with_too_few_rights_is_named_with_the_mend(guarded: RedisServer, name: str) -> None:
    with pytest.raises(StoreError, match=r"by_depot.* NOPERM .*commands and keys") as caught:
        _publish(_user(guarded, name), 10)
    assert not isinstance(caught.value, StoreUnavailable)
    assert _standing(_user(guarded, "tidemill")) is None


def test_user_who_may_only_read_reads(guarded: RedisServer) -> None:
    _publish(_user(guarded, "tidemill"), 10)
    assert _standing(_user(guarded, "reader")) == _row(1, 10)


def test_user_who_may_not_ask_for_info_is_told_what_is_not_known(guarded: RedisServer) -> None:
    with pytest.warns(RuntimeWarning, match=r"may evict rows is not known: .*noeviction"):
        _user(guarded, "narrow").create([COURIER_SPACE])
    assert COURIER_SPACE.name in _user(guarded, "narrow").spaces()


@pytest.mark.parametrize(
    ("name", "env"), [("tidemill", "WRONG_PASSWORD"), ("nobody", "WRONG_PASSWORD")]
)
def test_wrong_password_is_said_and_never_shown(guarded: RedisServer, name: str, env: str) -> None:
    database = _user(guarded, name, env)
    with pytest.raises(StoreError, match="refuses the user or the password") as caught:
        _publish(database, 10)
    assert not isinstance(caught.value, StoreUnavailable)
    shown = "".join(traceback.format_exception(caught.value)) + repr(database)
    assert SECRET not in shown
    assert SECRET not in str(pickle.dumps(database))
    assert SECRET not in str(feast_section(database.place, "wall", Path("/run")))


def test_password_that_is_missing_is_said(guarded: RedisServer, tmp_path: Path) -> None:
    plain = RedisDatabase(guarded.place)
    guarded.client().execute_command("ACL", "SETUSER", "default", "resetpass", f">{SECRET}")
    with pytest.raises(StoreError, match=r"NOAUTH .*refuses the user or the password"):
        _publish(plain, 10)
    with pytest.raises(StoreError, match=r"environment variable ABSENT_PASSWORD.* is not set"):
        _publish(_user(guarded, "tidemill", "ABSENT_PASSWORD"), 10)
    absent = dataclasses.replace(guarded.place, password_file=tmp_path / "absent")
    with pytest.raises(StoreError, match=r"password cannot be read from .*absent: No such file"):
        _publish(RedisDatabase(absent), 10)


def test_place_that_cannot_be_is_refused() -> None:
    for changes, message in (
        ({"password_env": "A", "password_file": Path("b")}, "expected one of the two"),
        ({"username": "ann"}, "user 'ann' has no password"),
        ({"port": 0}, "found port 0"),
        ({"timeout_us": 0}, "timeout must be above zero"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            RedisPlace(**changes)
    with pytest.raises(ConfigurationError, match="a certificate goes with its key"):
        RedisTls(cert=Path("own.crt"))


def test_place_is_given_as_plain_values() -> None:
    assert RedisPlace().options(Path("/run")) == {
        "host": "localhost",
        "port": 6379,
        "db": 0,
        "timeout_us": 5_000_000,
    }
    tls = RedisTls(Path("/ca"), Path("/cert"), Path("/key"))
    full = RedisPlace("h", 1, 2, "ann", None, Path("/password"), tls, 3)
    assert full.options(Path("/run")) == {
        "host": "h",
        "port": 1,
        "db": 2,
        "username": "ann",
        "password_file": "../password",
        "tls": {"ca": "../ca", "cert": "../cert", "key": "../key"},
        "timeout_us": 3,
    }
    assert RedisPlace(tls=RedisTls()).options(Path("/run"))["tls"] == {}


def test_nobody_there_is_said_with_place_and_mend() -> None:
    place = RedisPlace(host="127.0.0.1", port=free_port())
    with pytest.raises(StoreUnavailable, match=rf"redis://127\.0\.0\.1:{place.port}/0, key space"):
        _publish(RedisDatabase(place), 10)
    with pytest.raises(StoreUnavailable, match=r"all key spaces: no connection \(.*start Redis"):
        RedisDatabase(place).spaces()


def test_databases_of_a_redis_are_apart(server: RedisServer) -> None:
    one, other = (RedisDatabase(dataclasses.replace(server.place, db=db)) for db in (0, 3))
    for database, time in ((one, 10), (other, 20)):
        database.create([DEPOT_SPACE])
        _publish(database, time)
    assert (_standing(one), _standing(other)) == (_row(1, 10), _row(1, 20))


def test_only_a_projects_own_key_spaces_are_dropped(server: RedisServer) -> None:
    database = open_database(server.place)
    neighbour = dataclasses.replace(DEPOT_SPACE, project="parcels2")
    database.create([DEPOT_SPACE, COURIER_SPACE, neighbour])
    database.drop(list(named_spaces(database, DEPOT_SPACE.project)))
    assert database.spaces() == [neighbour.name]


def _client_id(database: RedisDatabase) -> int:
    (number,) = exchange(database.place, [("CLIENT", "ID")])
    return int(number)


def _child(database: RedisDatabase, time: int, told: Connection) -> None:
    assert _publish(database, time) == 1
    told.send(_client_id(database))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_process_opens_its_own_connection(server: RedisServer, method: str) -> None:
    database = RedisDatabase(server.place)
    database.create([DEPOT_SPACE])
    _publish(database, 10)
    ours = _client_id(database)
    processes = multiprocessing.get_context(method)
    heard, told = processes.Pipe(duplex=False)
    child = processes.Process(target=_child, args=(database, 20, told))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert _standing(database) == _row(1, 20)
    # The child opened a connection of its own, and left this process's alone.
    assert heard.recv() != ours
    assert _client_id(database) == ours


def test_threads_have_connections_of_their_own(server: RedisServer) -> None:
    database = RedisDatabase(server.place)
    spaces = [dataclasses.replace(DEPOT_SPACE, definition=f"{n:016x}") for n in range(8)]
    database.create(spaces)
    wrong: list[tuple[KeySpace, int]] = []

    def work(space: KeySpace) -> None:
        for time in range(1, 100):
            rows = RowBatch.of([_row(1, time)], 0)
            database.write(space, rows)
            if database.read([(space, [_row(1, 0).key])])[0].rows != [_row(1, time)]:
                wrong.append((space, time))
        database.close()

    threads = [threading.Thread(target=work, args=(space,)) for space in spaces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
