"""Stopping the stream that runs, in order, for an upgrade to go on from where it stops."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tidemill.features.errors import Locked
from tidemill.pipelines.telemetry.stream_record import StreamRecord
from tidemill.serving.files.locks import is_locked, lock
from tidemill.serving.generations.current import Current

_LOOK_S: Final = 0.02
DRAINS_WITHIN_S: Final = 300.0
"""A stream that has not stopped after this time is left alone."""
_WHAT: Final = "run this generation's stream"


@contextmanager
def stopped_stream(current: Current, say: Callable[[str], None]) -> Iterator[None]:
    """Stop the stream that runs, if one does, and hold its lock while the block runs.

    Args:
        current: The folders of the generation.
        say: Tells a person what happens.

    Raises:
        Locked: It cannot be stopped from here, or does not stop.
    """
    if is_locked(current.stream_lock):
        _stop(current, say)
    with lock(current.stream_lock, _WHAT):
        yield


def _stop(current: Current, say: Callable[[str], None]) -> None:
    record = StreamRecord.read(current.folder)
    if record is None or record.host != socket.gethostname():
        where = "another machine" if record is None else f"{record.host} (process {record.pid})"
        raise Locked(
            f"{current.folder}: the stream runs on {where}: stop it there, and run `tidemill "
            "upgrade` again"
        )
    say(f"process {record.pid} runs the stream: it takes what it has read, and stops")
    if record.ended_us is None:
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + DRAINS_WITHIN_S
    while is_locked(current.stream_lock):
        if time.monotonic() > deadline:
            raise Locked(
                f"{current.folder}: process {record.pid} has not stopped within "
                f"{DRAINS_WITHIN_S:g} s; nothing was upgraded"
            )
        time.sleep(_LOOK_S)
