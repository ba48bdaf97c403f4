"""Writing online: rows a second by our path and by Feast's, into SQLite and a real Redis; sizes.

**Rates.** A row is one card in one view; a call writes ``size`` cards, each in every view of the
shape. Everything from what the caller has in hand to the acknowledged write is timed: for ours
the kernel's publications in Arrow, for Feast a pandas DataFrame, built before. Every card has a
row already, and every row is newer than the one that stands. The routes stand in
`benchmarks.online_routes`; afterwards Feast's SDK reads every card and each value is compared.
The CPU time is also that of the Redis, which is a process below this one.

**Sizes.** Bytes for a card: of Redis ``used_memory`` before and after 100,000 cards, of SQLite the
file with its log written back. Cards come in random order, 1,000 a call.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import redis

from benchmarks.measure import Effort, Figure, alternate, rates, ratios, run_for
from benchmarks.online_routes import (
    AS_IT_COMES,
    OURS,
    PUSH,
    REDIS,
    SQLITE,
    STORES,
    WRITE,
    Route,
    feast_route,
    our_route,
    plug_in_route,
    server_of,
)
from benchmarks.online_workload import SHAPES, Shape
from tidemill.serving.stores.redis_place import RedisPlace

_CALLS: Final = {1: 100, 100: 10, 1_000: 2}
"""By cards a call: how many calls are one piece of work, so that it is long enough to time."""
_FEW_CALLS: Final = {1: 5, 100: 1}
_STEADY_S: Final = 1.0
_STEADY_BYTES: Final = 1_000
"""Redis has settled when for so long it takes the same memory, but for so much."""
_NOTES: Final = {
    SQLITE: "write-ahead log and synchronous=NORMAL on all sides",
    REDIS: "a Redis that keeps nothing on disk; its CPU time is counted",
}


def measure_store(
    store: str, shape: Shape, cards: int, calls: Mapping[int, int], effort: Effort
) -> list[Figure]:
    """Measure all routes into one store for one shape.

    Args:
        store: `SQLITE` or `REDIS`.
        shape: What is written.
        cards: How many cards there are.
        calls: For each number of cards a call, how many calls are one piece of work.
        effort: How hard to measure; routes that only inform run once.

    Returns:
        For each size the rates of all routes, how many times faster ours is than Feast's two, and
        how many values were read back and compared.

    Raises:
        AnswersDiffer: A value was read back that is not the one written last.
    """
    with tempfile.TemporaryDirectory() as folder, server_of(store, Path(folder)) as server:
        root = Path(folder)
        ours = our_route(shape, cards, root, server)
        peers = [feast_route(name, shape, cards, root, server) for name in (PUSH, WRITE)]
        others = [plug_in_route(shape, cards, root, server)]
        if store == SQLITE:
            names = [PUSH + AS_IT_COMES, WRITE + AS_IT_COMES]
            others += [feast_route(name, shape, cards, root, server) for name in names]
        for route in (ours, *peers, *others):
            route.fill()
        return [
            figure
            for size, number in calls.items()
            for figure in _measure_size(store, shape, size, number, [ours, *peers], others, effort)
        ]


def _measure_size(
    store: str,
    shape: Shape,
    size: int,
    calls: int,
    compared: Sequence[Route],
    others: Sequence[Route],
    effort: Effort,
) -> list[Figure]:
    label = f"{store}, {shape.name}, {size:,} a call"
    runs = alternate({route.name: route.side(size, calls) for route in compared}, effort)
    out = []
    for name, of_route in runs.items():
        out += rates(f"{label}: {name}", of_route, "rows/s", _NOTES[store])
    for name in (PUSH, WRITE):
        out += ratios(f"{label}: {OURS} / {name}", runs[OURS], runs[name])
    for route in others:
        once = run_for(route.side(size, calls), effort.seconds)
        note = "Feast's settings" if route.name.endswith(AS_IT_COMES) else _NOTES[store]
        out += rates(f"{label}: {route.name}", [once], "rows/s", f"one run; {note}")
    values = sum(route.check() for route in (*compared, *others))
    return [*out, Figure(f"{label}: values read back as written", values, "values")]


def measure_bytes(shape: Shape, cards: int, effort: Effort) -> list[Figure]:
    """Measure how many bytes a card takes in each store, ours and Feast's."""
    routes: dict[str, Callable[[Path, RedisPlace | None], Route]] = {
        OURS: lambda root, server: our_route(shape, cards, root, server),
        "Feast's": lambda root, server: feast_route(WRITE, shape, cards, root, server),
    }
    out = []
    for store in STORES:
        bytes_of = {}
        for name, route_to in routes.items():
            with tempfile.TemporaryDirectory() as folder, server_of(store, Path(folder)) as server:
                bytes_of[name] = _bytes_written(route_to(Path(folder), server), server, effort)
        label = f"{store}, {shape.name}"
        out += [
            Figure(f"{label}: {name}", count / cards, "bytes/card")
            for name, count in bytes_of.items()
        ]
        ratio = bytes_of["Feast's"] / bytes_of[OURS]
        out.append(Figure(f"{label}: Feast's / {OURS}, bytes", ratio, "x"))
    return out


def _bytes_written(route: Route, server: RedisPlace | None, effort: Effort) -> int:
    """Fill a store and return how much it grew."""
    before = stored_bytes(route, server, effort)
    route.fill()
    return stored_bytes(route, server, effort) - before


def stored_bytes(route: Route, server: RedisPlace | None, effort: Effort) -> int:
    """Return how many bytes a store takes: the file, or the memory of its Redis."""
    if server is not None:
        return _settled_redis(server, min(_STEADY_S, effort.seconds))
    config = route.sdk.config
    return _written_file(Path(config.repo_path) / config.online_store.path)


def _written_file(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy, "somebody reads or writes the file"
    return path.stat().st_size


def _settled_redis(server: RedisPlace, steady_s: float) -> int:
    """Return what Redis takes once it has finished resizing its tables."""
    with closing(redis.Redis(host=server.host, port=server.port)) as client:
        found, since_s = client.info("memory")["used_memory"], time.monotonic()
        while time.monotonic() - since_s < steady_s:
            time.sleep(steady_s / 10)
            now = client.info("memory")["used_memory"]
            if abs(now - found) > _STEADY_BYTES:
                found, since_s = now, time.monotonic()
    return int(found)


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    cards, calls = (100, _FEW_CALLS) if quick else (10_000, _CALLS)
    out = []
    for store in STORES:
        for shape in SHAPES:
            out += measure_store(store, shape, cards, calls, effort)
    for shape in SHAPES:
        out += measure_bytes(shape, 1_000 if quick else 100_000, effort)
    return out
