"""Objects in a folder and in S3: whole, listed, removed; errors name the place and no secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.redis_server import free_port
from tests.support.s3_server import S3Server
from tidemill.features.errors import ExchangeUnreachable
from tidemill.pipelines.io.exchange.objects import Objects


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"), free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["file", "s3"])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Objects:
    if request.param == "file":
        return Objects(f"file://{tmp_path}/with%20space")
    server: S3Server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    base, _, options = server.url.partition("?")
    return Objects(f"{base}/{tmp_path.name}?{options}")


def test_what_was_put_is_listed_and_read_until_it_is_removed(objects: Objects) -> None:
    assert objects.names() == objects.names("a") == []
    assert objects.get("a/b/1") is None
    objects.put("a/b/1", b"one")
    objects.put("a/b/2", b"")
    objects.put("a/c", memoryview(b"x" * (6 << 20)))  # in one request
    assert objects.names() == ["a/b/1", "a/b/2", "a/c"]
    assert objects.names("a/b") == ["a/b/1", "a/b/2"]
    for name, data in (("a/b/1", b"one"), ("a/b/2", b""), ("a/c", b"x" * (6 << 20))):
        found = objects.get(name)
        assert found is not None
        assert found.to_pybytes() == data
    objects.put("a/b/1", b"one")
    objects.remove_folder("a/b")
    assert objects.names() == ["a/c"]
    objects.remove_folder("a")
    objects.remove_folder("a")
    assert objects.names() == []


def test_a_large_object_is_whole(objects: Objects) -> None:
    data = b"0123456789abcdef" * (2 << 20)  # of several parts, each in a request of its own
    for _ in range(2):
        objects.put("a/large", data)
        found = objects.get("a/large")
        assert found is not None
        assert found.equals(pa.py_buffer(data))


def test_what_is_read_stays_when_it_is_removed(objects: Objects) -> None:
    objects.put("a/one", b"1" * 100_000)
    found = objects.get("a/one")
    objects.remove_folder("a")
    assert found is not None
    assert found.to_pybytes() == b"1" * 100_000


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:secret@bucket/folder?endpoint_override=127.0.0.1:1&scheme=http",
        "s3://user:secret@bucket/folder?no_option=1",
        "nothing://user:secret@bucket/folder",
        "user:secret@bucket",
        "file:///proc/none/folder",
    ],
)
def test_a_storage_that_is_away_or_no_storage_is_named_without_secrets(url: str) -> None:
    objects = Objects(url)
    with pytest.raises(ExchangeUnreachable, match="the exchange ") as error:
        objects.put("a/b", b"")
    assert "secret" not in str(error.value)
