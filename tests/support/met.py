"""A program and a worker of it, in one process, that meet in an S3 server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apache_beam as beam

from tests.support.s3_server import S3Server
from tidemill.pipelines.io.exchange.program_end import ProgramEnd, exchange
from tidemill.pipelines.io.exchange.worker_end import WorkerEnd

WAIT_S = 60.0


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(str)
class Keep(beam.DoFn):
    """Keeps elements."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def process(self, element: bytes) -> None:
        self.kept.append(element)


@contextmanager
def met(s3: S3Server, root: Path, keep: Keep) -> Iterator[tuple[ProgramEnd, WorkerEnd]]:
    """A program and a worker that meet."""
    root.mkdir()
    with exchange(s3.url, root, "root", [root], lambda *_: None, lambda *_: None, "job") as program:
        program.step("keep", keep)
        program.take()
        worker = WorkerEnd(program.place)
        try:
            worker.join()
            worker.polls()
            worker.hand_over("keep", [b"before"])
            wait(lambda: keep.kept == [b"before"], program)
            yield program, worker
        finally:
            worker.close()


def wait(is_so: Callable[[], object], program: ProgramEnd) -> None:
    """Wait until something is true, while the program's end goes on."""
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        program.check()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
