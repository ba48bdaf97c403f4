"""The stream that runs in this process: its record, its figures, its pages and its log."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tidemill.features.contract import SECOND, write_instant
from tidemill.features.errors import FileError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.events import log_event
from tidemill.pipelines.telemetry.exposition import FiguresCollector, Values, exposed
from tidemill.pipelines.telemetry.figures import Figures, Snapshot, joined
from tidemill.pipelines.telemetry.json_log import described
from tidemill.pipelines.telemetry.metrics_server import serving
from tidemill.pipelines.telemetry.proof_figures import ProofFigures
from tidemill.pipelines.telemetry.run_id import RUN_ID
from tidemill.pipelines.telemetry.stage_figures import NO_FIGURES, FiguresPlace
from tidemill.pipelines.telemetry.stream_record import StreamRecord, figures_files
from tidemill.pipelines.telemetry.tracing import tracing
from tidemill.serving.generations.current import Current

_log: Final = logging.getLogger(__name__)


class Running:
    """A stream that runs in this process.

    Args:
        record: Its record.
        generation: The folder of the generation.
        root: The root.

    Attributes:
        figures: The figures of this process.
        place: Where the stages of its pipelines report.
    """

    def __init__(self, record: StreamRecord, generation: Path, root: Path) -> None:
        self.record, self.figures = record, Figures(record.run)
        self._generation, self._root = generation, root
        self._files = figures_files(generation)
        self._read_proofs = ProofFigures(root)
        self.place = FiguresPlace(record.run, self._files.folder)
        self.is_ending = threading.Event()

    def change(self, **changes: Any) -> None:
        """Write the record, changed; a disk that is full is no reason to stop a stream."""
        self.record = dataclasses.replace(self.record, **changes)
        try:
            self.record.write(self._generation)
        except FileError as error:
            _log.warning("the record of the running stream cannot be written: %s", error)

    def snapshots(self) -> list[Snapshot]:
        """Return the figures of this process as they are now, and of the others of the run."""
        mine = self.figures.snapshot()
        others = self._files.read(self.record.run)
        return [mine, *(one for one in others if (one.pid, one.host) != (mine.pid, mine.host))]

    def gauges(self) -> Values:
        """Return the gauges that say which stream this is, and what proofs have found."""
        record = self.record
        labels = record.run, record.project, record.engine, record.mode, _version()
        return {
            (metrics.STREAM.name, labels): 1.0,
            (metrics.STARTED.name, ()): record.began_us / SECOND,
            **self._read_proofs(),
        }

    def health(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the stream goes on, and what to say of it."""
        is_well = not self.is_ending.is_set()
        return is_well, {
            "status": "running" if is_well else "ending",
            "run": self.record.run,
            "seconds": round(time.time() - self.record.began_us / SECOND, 3),
        }


def _version() -> str:
    try:
        return importlib.metadata.version("tidemill")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


_running: Final[list[Running]] = []


def running() -> Running | None:
    """Return the stream that runs in this process; None if there is none."""
    return _running[-1] if _running else None


def figures_place() -> FiguresPlace:
    """Return where the stages of a pipeline of this process report."""
    return NO_FIGURES if (now := running()) is None else now.place


def predictions_so_far() -> int:
    """Return how many predictions the stream that runs in this process has made, as far as known.

    What another process has made is known after a second.
    """
    return counted_so_far(metrics.PREDICTIONS)


def counted_so_far(metric: metrics.Metric) -> int:
    """Return what the processes of the stream that runs in this one have added to a counter.

    What another process has added is known after a second.

    Args:
        metric: The counter.
    """
    if (now := running()) is None:
        return 0
    counted = joined(now.snapshots()).counters
    return int(sum(count for (name, _), count in counted.items() if name == metric.name))


def segment_begins(stream: int, segment: int, mode: str) -> None:
    """Note that the stream that runs in this process begins a segment.

    Args:
        stream: The number of the stream in the generation.
        segment: The number of the segment.
        mode: ``exact`` or ``eager``.
    """
    if (now := running()) is not None:
        now.change(stream=stream, segment=segment, mode=mode)
        message = f"segment {segment} begins"
        log_event(_log, "segment", message, stream=stream, segment=segment, mode=mode)


def stream_is_ready() -> None:
    """Note that the operators of the stream that runs in this process have taken a first poll."""
    if (now := running()) is not None and now.record.ready_us is None:
        now.change(ready_us=time.time_ns() // 1_000)


def savepoint_kept(segment: int, as_of_us: int) -> None:
    """Note that the stream that runs in this process has kept a savepoint.

    Args:
        segment: The number of the segment that ends there.
        as_of_us: Its states contain all rows received before this instant.
    """
    if (now := running()) is not None:
        now.change(segment=segment + 1)
        now.figures.add(metrics.SAVEPOINTS, 1)
        now.figures.set(metrics.SAVEPOINT, time.time())
    as_of = write_instant(as_of_us)
    message = f"savepoint {segment} is kept: all rows received before {as_of}"
    log_event(_log, "savepoint", message, segment=segment, as_of=as_of)


def stream_drains(poll: int) -> None:
    """Note that the stream that runs in this process was asked to stop, and ends in order.

    Args:
        poll: The number of the last poll that it takes.
    """
    if (now := running()) is not None:
        now.is_ending.set()
    message = f"the stream drains: it takes what it has read, until poll {poll}, and ends"
    log_event(_log, "drain", message, poll=poll)


@contextmanager
def seen_from_outside(config: Configuration, current: Current, engine: str) -> Iterator[Running]:
    """Show a stream to the outside while the block runs it; the caller holds the stream's lock.

    Args:
        config: The configuration.
        current: The folders of the generation.
        engine: The name of the engine.

    Raises:
        ConfigurationError: The port of ``metrics.listen`` is taken, or tracing lacks a package.
        FileError: The figures, or the record, cannot be written.
    """
    record = StreamRecord(
        run=RUN_ID,
        project=config.project.name,
        pid=os.getpid(),
        host=socket.gethostname(),
        engine=engine,
        mode="",
        stream=0,
        segment=0,
        began_us=time.time_ns() // 1_000,
    )
    now = Running(record, current.folder, config.root)
    files = figures_files(current.folder)
    with ExitStack() as opened:
        if config.metrics is not None:
            collector = FiguresCollector(now.snapshots, now.gauges)
            host, wanted = config.metrics.address
            port = opened.enter_context(
                serving(host, wanted, lambda accepts: exposed(collector, accepts), now.health)
            )
            now.record = dataclasses.replace(record, listen=f"{host}:{port}")
        endpoint = None if config.tracing is None else config.tracing.endpoint
        opened.enter_context(tracing(endpoint, config.project.name))
        files.begin()
        now.record.write(current.folder)
        opened.enter_context(files.written(now.figures))
        opened.enter_context(now.place.leads_to(now.figures))
        _running.append(now)
        log_event(
            _log,
            "start",
            f"the stream of {record.project} starts on {engine}",
            project=record.project,
            engine=engine,
            generation=current.generation,
            root=str(config.root),
            listen=now.record.listen,
        )
        try:
            yield now
        except BaseException as error:
            said = described(error, shows_traceback=False)
            if isinstance(error, KeyboardInterrupt):
                said["text"] = "a signal ended it at once, without a savepoint"
            now.change(ended_us=time.time_ns() // 1_000, error=said)
            raise
        else:
            now.change(ended_us=time.time_ns() // 1_000)
            log_event(_log, "end", "the stream has ended in order")
        finally:
            _running.remove(now)
