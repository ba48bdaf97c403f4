"""Connections to Redis for many threads and processes: one per thread and place.

* Neither two threads nor two processes share a connection.
* Commands are sent together and answered together: one round trip.
* If the server has closed a connection (idle for long, or restarted), it is opened once more and
  everything is sent again: the commands of all callers are idempotent.
* The client library's own retries are off: callers decide whether and how long to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

from tidemill.serving.online.per_thread import PerThread
from tidemill.serving.stores.redis_place import RedisPlace

Command = Sequence[str | bytes | int]
"""A command with its arguments."""

_US_PER_S: Final = 1_000_000


_connections = PerThread[RedisPlace, Any]()


def exchange(place: RedisPlace, commands: Sequence[Command]) -> list[Any]:
    """Send commands in one round trip; again if the connection was closed.

    Each answer is bytes, int, None, a list, or the `ResponseError` to the command.

    Raises:
        redis.exceptions.RedisError: There is no connection, or it broke or timed out.
        StoreError: The password cannot be read.
    """
    while True:
        connection, is_new = _connection(place)
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [_answer(connection) for _ in commands]
        except RedisConnectionError:
            close(place)
            if is_new:
                raise
        except BaseException:
            # Unread answers would be taken for those of the next commands.
            close(place)
            raise


def close(place: RedisPlace) -> None:
    """Close this thread's connection to a place, if there is one."""
    if (connection := _connections.pop(place)) is not None:
        connection.disconnect()


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _connection(place: RedisPlace) -> tuple[Any, bool]:
    if (known := _connections.get(place)) is not None:
        return known, False
    made = _open(place)
    made.connect()
    # A server that needs a password refuses a short command with the reason; at a long one it just
    # closes the connection.
    made.send_command("PING")
    made.read_response()
    _connections.put(place, made)
    return made, True


def _open(place: RedisPlace) -> Any:
    options: dict[str, Any] = {
        "host": place.host,
        "port": place.port,
        "db": place.db,
        "username": place.username,
        "password": place.password(),
        "socket_timeout": place.timeout_us / _US_PER_S,
        "socket_connect_timeout": place.timeout_us / _US_PER_S,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    if place.tls is None:
        return Connection(**options)
    tls = place.tls
    return SSLConnection(
        **options,
        ssl_cert_reqs="required",
        ssl_check_hostname=True,
        ssl_ca_certs=None if tls.ca is None else str(tls.ca),
        ssl_certfile=None if tls.cert is None else str(tls.cert),
        ssl_keyfile=None if tls.key is None else str(tls.key),
    )
