"""The ordered stores that a test runs against: an SQLite file and a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import redis_server
from tidemill.serving.stores.online_places import OnlinePlace, default_place

STORES = ["sqlite", "redis"]


@contextmanager
def place_of(store: str, root: Path) -> Iterator[OnlinePlace]:
    """Yield the place of an empty store; a Redis runs until the context ends."""
    if store == "sqlite":
        yield default_place(root)
        return
    with redis_server.running(root / "redis") as server:
        yield server.place


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlinePlace]:
    """One of the stores, for a test."""
    with place_of(request.param, tmp_path) as found:
        yield found
