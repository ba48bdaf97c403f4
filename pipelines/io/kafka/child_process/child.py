"""What runs in the process beside: a thread for each consumer and each producer.

The first argument is the number of a socket from which connections come; the process ends when it
closes, as it does when the parent ends. The second is that of a pipe for what is logged.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Final

from tidemill.pipelines.io.kafka.child_process.consumer import ConsumerRequest, serve_consumer
from tidemill.pipelines.io.kafka.child_process.process import PipeHandler, portable
from tidemill.pipelines.io.kafka.child_process.producer import ProducerRequest, serve_producer
from tidemill.pipelines.io.kafka.choosing import choose_client

_MOST_SOCKETS: Final = 1


def main() -> None:
    """Serve the parent until it ends."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    logging.basicConfig(level=logging.INFO, handlers=[PipeHandler(int(sys.argv[2]))], force=True)
    while True:
        told, sockets, _, _ = socket.recv_fds(control, 1, _MOST_SOCKETS)
        if not told:
            # What still waits is the parent's, which has ended or needs it no longer.
            os._exit(0)
        for number in sockets:
            pipe = Pipe(number)
            threading.Thread(target=_serve, args=(pipe,), daemon=True).start()


def _serve(pipe: Pipe) -> None:
    """Serve one connection until it closes."""
    with pipe, suppress(EOFError, OSError):
        request: ConsumerRequest | ProducerRequest = pipe.recv()
        try:
            serve, close = _opened(request)
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            pipe.send(portable(error))
            return
        try:
            pipe.send(None)
            serve(pipe)
        finally:
            close()


def _opened(
    request: ConsumerRequest | ProducerRequest,
) -> tuple[Callable[[Pipe], None], Callable[[], None]]:
    """Connect what is asked for; return what serves a pipe, and what closes it after that."""
    client = choose_client(request.connection.client)
    if isinstance(request, ConsumerRequest):
        consumer = client.consumer(request.connection)
        return partial(serve_consumer, consumer=consumer), consumer.close
    producer = client.producer(request.connection, request.settings)
    return partial(serve_producer, producer=producer), producer.close


if __name__ == "__main__":
    main()
