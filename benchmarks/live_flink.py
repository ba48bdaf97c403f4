"""Live streams on a Flink cluster of this machine: as `benchmarks.live`, with one worker.

The workers share the disk with the program, or meet it in an exchange: a folder, and an S3 server
on this machine with a folder behind it. Broker, producer, cluster, stores and readers share the
machine, too.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.live import LARGE_BACKLOG, Adapt, large_messages, latency, quickly, sustained
from benchmarks.measure import Effort, Figure
from tests.support.environment import environment
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


class Servers(NamedTuple):
    """What the streams need; all of it runs.

    Attributes:
        broker: The broker.
        store: The Redis.
        cluster: The cluster.
    """

    broker: TestBroker
    store: RedisServer
    cluster: TestCluster


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


def quick_figures(folder: Path, servers: Servers) -> list[Figure]:
    """Measure one stream, through an exchange in a folder; the times mean nothing.

    Args:
        folder: Where it runs.
        servers: On which it runs.
    """

    def adapt(project: LiveProject) -> None:
        url = f"file://{folder / 'exchange'}"
        _adapted(servers.cluster, servers.store, url, project)
        quickly(project)

    name = "flink, exchange in a folder"
    return latency(folder / "stream", servers.broker, name, "exact", 40, 2.0, adapt)


def all_figures(
    folder: Path, servers: Servers, places: Mapping[str, str | None], effort: Effort
) -> list[Figure]:
    """Measure streams whose workers meet the program at several places.

    Args:
        folder: Where they run.
        servers: On which they run.
        places: The URL of each place; None is the root's own disk.
        effort: How hard to measure.
    """
    every: dict[str, Adapt] = {
        name: partial(_adapted, servers.cluster, servers.store, url) for name, url in places.items()
    }
    broker, seconds, pairs = servers.broker, max(3 * effort.seconds, 2.0), effort.pairs
    out: list[Figure] = []
    for number, (name, adapt) in enumerate(every.items()):
        for rate in RATES:
            place = folder / f"{number}-{rate}"
            out += _said(latency(place, broker, name, "exact", rate, seconds, adapt))
    for number, (name, adapt) in enumerate(every.items()):
        place, rows = folder / f"full-{number}", BACKLOG_ROWS
        out += _said(sustained(place, broker, name, rows, pairs, adapt, sinks=False))
    for number, (name, adapt) in enumerate(every.items()):
        place, rows = folder / f"large-{number}", LARGE_BACKLOG["arrow"]
        out += _said(large_messages(place, broker, "arrow", rows, KERNEL_ROWS, pairs, name, adapt))
    return out


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory(prefix="tidemill-flink-") as top:
        folder = Path(top)
        s3 = S3Server(folder / "s3", free_port())
        broker = TestBroker(folder / "kafka")
        store = RedisServer(folder / "redis", {"databases": "99"})
        with environment(s3.environment):
            cluster = TestCluster(folder / "cluster")
            servers = Servers(broker, store, cluster)
            try:
                for server in (s3, *servers):
                    server.start()
                if quick:
                    return quick_figures(folder, servers)
                places = {
                    "flink": None,
                    "flink, exchange in a folder": f"file://{folder / 'exchange'}",
                    "flink, exchange in S3": s3.url,
                }
                return all_figures(folder, servers, places, effort)
            finally:
                cluster.close()
                store.kill()
                broker.close()
                s3.kill()
