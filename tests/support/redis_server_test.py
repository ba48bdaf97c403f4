"""Tests that want a Redis must not pass in CI without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.redis_server import program, running


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_missing_server_fails_in_ci_and_is_skipped_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"redis-server is not installed .*apt-get install"):
        program("redis-server", "redis-server")


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
