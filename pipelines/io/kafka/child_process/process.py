"""The process beside this one that reads or writes topics.

The promises:

* It is started when it is first needed, and again when it has ended.
* It ends when its parent does, however that ends, and when `ChildProcess.close` is called. It takes
  no notice of the signals by which a person stops a group of processes: the parent tells it.
* What it logs is logged here, as if it had been logged by this process.
* Nothing secret is in its arguments or its environment.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Final

from tidemill.features.errors import BrokerUnreachable

CHILD: Final = "tidemill.pipelines.io.kafka.child_process.child"
_START_S: Final = 30.0
_END_S: Final = 5.0
_DYING_S: Final = 1.0


class ChildProcess:
    """A process that reads or writes topics; threads may share it.

    Args:
        start_s: How long it may take until it answers, in seconds, beside what a request takes.
    """

    def __init__(self, start_s: float = _START_S) -> None:
        self._start_s, self._lock = start_s, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The number of the process; None if it does not run."""
        with self._lock:
            process = self._process
            return None if process is None or process.poll() is not None else process.pid

    def connect(self, request: object, within_s: float = 0.0) -> Pipe:
        """Ask the process to serve a request; return the connection to what serves it.

        Args:
            request: What is served, as `child` understands it.
            within_s: How long it may take until it is served, in seconds.

        Raises:
            BrokerUnreachable: The process does not answer in time; it was ended.
            Exception: What the process raised.
        """
        try:
            pipe, error = self._ask(request, within_s)
        except (EOFError, OSError):
            if not self._is_ending():
                raise self._unanswered() from None
            # It was ending already when it was asked: another one is started.
            try:
                pipe, error = self._ask(request, within_s)
            except (EOFError, OSError):
                raise self._unanswered() from None
        if error is not None:
            pipe.close()
            raise error
        return pipe

    def _ask(self, request: object, within_s: float) -> tuple[Pipe, BaseException | None]:
        """Return the connection to what serves a request, and why it cannot be served.

        Raises:
            EOFError, OSError: The process has ended before it answered.
        """
        pipe = self._connection()
        try:
            pipe.send(request)
            if not pipe.poll(self._start_s + within_s):
                self._end(wait_s=0.0)
                raise BrokerUnreachable(
                    "the process that reads or writes topics did not answer within "
                    f"{self._start_s + within_s:g} s, and was ended"
                )
            return pipe, pipe.recv()
        except BaseException:
            pipe.close()
            raise

    def close(self) -> None:
        """End the process, and all that it serves."""
        with self._lock:
            self._is_closed = True
        self._end()

    def _connection(self) -> Pipe:
        mine, other = socket.socketpair()
        with mine, other, self._lock:
            if self._is_closed:
                raise BrokerUnreachable("the process that reads or writes topics was closed")
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._control is not None
            with suppress(OSError):  # it has ended; the connection tells
                socket.send_fds(self._control, [b"+"], [other.fileno()])
            return Pipe(mine.detach())

    def _start(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control, other = socket.socketpair()
        logs, written = os.pipe()
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        numbers = (other.fileno(), written)
        try:
            # -P: the folder where a person stands is no place of modules.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", CHILD, *map(str, numbers)],
                pass_fds=numbers,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        finally:
            other.close()
            os.close(written)
        threading.Thread(
            target=log_until_end, args=(logs,), name="kafka-child-logs", daemon=True
        ).start()

    def _end(self, wait_s: float = _END_S) -> None:
        with self._lock:
            process, control = self._process, self._control
            self._process = self._control = None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _is_ending(self) -> bool:
        """Tell whether the process ends, or has ended; its connections close before."""
        with self._lock:
            process = self._process
        try:
            return process is None or process.wait(_DYING_S) is not None
        except subprocess.TimeoutExpired:
            return False

    def _unanswered(self) -> BrokerUnreachable:
        with self._lock:
            status = None if self._process is None else self._process.poll()
        how = "" if status is None else f" (status {status})"
        return BrokerUnreachable(
            f"the process that reads or writes topics has ended{how} before it answered"
        )


def log_until_end(number: int) -> None:
    """Log what a child process logs, until it ends.

    Args:
        number: The file that it writes to (`PipeHandler`), which is closed then.
    """
    pipe = Pipe(number, writable=False)
    with pipe, suppress(EOFError, OSError):
        while True:
            record: logging.LogRecord = pipe.recv()
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)


class PipeHandler(logging.Handler):
    """Sends records to the parent of this process.

    Args:
        number: The file to which they are written.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._pipe = Pipe(number, readable=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, as text."""
        sent = logging.makeLogRecord(record.__dict__)
        sent.msg, sent.args = record.getMessage(), ()
        if record.exc_info:
            sent.exc_text = logging.Formatter().formatException(record.exc_info)
        sent.exc_info = None
        with suppress(OSError):  # the parent has ended, and so will this process
            self._pipe.send(sent)

    def close(self) -> None:
        """Close the file."""
        self._pipe.close()
        super().close()


def portable(error: BaseException) -> BaseException:
    """Return an error that another process can be sent: itself, or what it says."""
    try:
        ForkingPickler.dumps(copy.copy(error))
    except Exception:  # noqa: BLE001 - whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
