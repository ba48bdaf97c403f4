"""Live streams on a Flink cluster of this machine: as `benchmarks.live`, with one worker.

The workers share the disk with the program, or meet it in an exchange: a folder, and an S3 server
on this machine with a folder behind it. Broker, producer, cluster, stores and readers share the
machine, too.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.live import LARGE_BACKLOG, Adapt, large_messages, latency, sustained
from benchmarks.measure import Effort, Figure
from tests.support.flink_cluster import TestCluster
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.redis_server import RedisServer, free_port
from tests.support.s3_server import S3Server

RATES: Final = (500, 5_000)
BACKLOG_ROWS: Final = 200_000
KERNEL_ROWS: Final = 1_000_000
_DATABASES: Final = itertools.count()
"""Each project has a root of its own, which does not write what another one's writes."""
_SQLITE: Final = "{type: sqlite, path: online.db}"


@contextmanager
def _environment(further: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(further)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _adapted(
    cluster: TestCluster, store: RedisServer, url: str | None, project: LiveProject
) -> None:
    """Let a project's stream run on a cluster, publish to Redis, and meet its workers at a URL."""
    path = project.folder / "tidemill.yaml"
    redis = f"{{type: redis, host: {store.host}, port: {store.port}, db: {next(_DATABASES)}}}"
    text = path.read_text()
    assert _SQLITE in text
    text = text.replace(_SQLITE, redis).replace(f"engine: {project.engine},", "engine: flink,")
    if url is not None:
        text = text.replace("stream: {", f'stream: {{exchange: "{url}", ')
    path.write_text(text)
    project.flags = cluster.flags


def _said(figures: list[Figure]) -> list[Figure]:
    print(*(f"{one.name} {one.value:,.2f} {one.unit}" for one in figures), sep="; ", flush=True)
    return figures


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    seconds = max(3 * effort.seconds, 2.0)
    rates = RATES if not quick else (40,)
    out: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tidemill-flink-") as top:
        folder = Path(top)
        s3 = S3Server(folder / "s3", free_port())
        broker, store = (
            TestBroker(folder / "kafka"),
            RedisServer(folder / "redis", {"databases": "99"}),
        )
        with _environment(s3.environment):
            cluster = TestCluster(folder / "cluster")
            try:
                for server in (s3, broker, store, cluster):
                    server.start()
                every: dict[str, Adapt] = {
                    name: partial(_adapted, cluster, store, url)
                    for name, url in (
                        ("flink", None),
                        ("flink, exchange in a folder", f"file://{folder / 'exchange'}"),
                        ("flink, exchange in S3", s3.url),
                    )
                }
                # Starting a stream takes the longest: a test has one.
                places = dict(list(every.items())[-1:]) if quick else every
                for number, (name, adapt) in enumerate(places.items()):
                    for rate in rates:
                        place = folder / f"{number}-{rate}"
                        out += _said(latency(place, broker, name, "exact", rate, seconds, adapt))
                if quick:
                    return out
                for number, (name, adapt) in enumerate(places.items()):
                    place = folder / f"full-{number}"
                    rows, pairs = BACKLOG_ROWS, effort.pairs
                    out += _said(sustained(place, broker, name, rows, pairs, adapt, sinks=False))
                for number, (name, adapt) in enumerate(places.items()):
                    place = folder / f"large-{number}"
                    large, kernel = LARGE_BACKLOG["arrow"], KERNEL_ROWS
                    pairs = effort.pairs
                    out += _said(
                        large_messages(place, broker, "arrow", large, kernel, pairs, name, adapt)
                    )
            finally:
                cluster.close()
                store.kill()
                broker.close()
                s3.kill()
    return out
