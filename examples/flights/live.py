"""A live demo: a broker, a producer, a stream with predictions, and the proof. `make demo-live`.

    python -m tidemill.examples.flights.live --minutes 3

The flights of November are the history, those of December are sent to topics of a broker on this
machine, faster than they happened. The stream keeps features in an online store and writes its
predictions to a topic, which this program reads, too. After the minutes it drains, and
`tidemill verify` recomputes everything that was served. The trained model is kept in the folder for
the next time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tidemill.examples.flights.live_data import LIVE_FROM, prepare
from tidemill.features.errors import ConfigurationError, TidemillError

_MARK: Final = "live-demo"
"""A file by which this program knows its folder."""
_SHOWN_EVERY_S: Final = 5.0
TRAVEL_S: Final = 0.5
"""How long a message may be on its way, by the clock of this machine."""
_PREDICTIONS: Final = "predictions"
TOPICS: Final = ("departures", "arrivals", "weather", "requests", _PREDICTIONS, "rejected")

CONFIGURATION: Final = """
project: tidemill.examples.flights.live_project:project
root: run
shards: 1
sources:
{sources}
splits: {{train_until: 2013-11-20T00:00:00Z, evaluate_until: {live_from}}}
training: {{epochs: 1, batch_size: 1024, seeds: 1, rate_groups: [carrier]}}
online_store: {{type: sqlite, path: online.db}}
stream: {{engine: fnapi, mode: exact}}
predictions: {{kafka: {{bootstrap: "{broker}", topic: predictions}}}}
rejected: {{kafka: {{bootstrap: "{broker}", topic: rejected}}}}
"""
_SOURCE: Final = """\
  {name}:
    files: [data/{name}.parquet]
    received: sent_at
    kafka: {{bootstrap: "{broker}", topic: {name}, clock: messages, quiet: {quiet}s}}
"""


def configuration(broker: str, speed: float, travel_s: float = TRAVEL_S) -> str:
    """Return the configuration of the demo.

    Args:
        broker: ``HOST:PORT``.
        speed: How many times faster than it happened the flights are sent.
        travel_s: How long a message may be on its way, by the clock of this machine.
    """
    quiet = max(1, round(travel_s * speed))
    names = TOPICS[:4]
    sources = "".join(_SOURCE.format(name=name, broker=broker, quiet=quiet) for name in names)
    return CONFIGURATION.format(sources=sources.rstrip(), live_from=LIVE_FROM, broker=broker)


@dataclass
class Parts:
    """The parts of the demo, with the seconds of each.

    Attributes:
        began: When the demo began, by a clock that never steps back.
        seconds: By part.
    """

    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part, and say how long it took."""
        began = time.monotonic()
        yield
        self.note(name, time.monotonic() - began)

    def note(self, name: str, seconds: float) -> None:
        """Note the seconds of a part, and say them."""
        self.seconds[name] = seconds
        print(f"{name:<44}{seconds:>6.1f} s", flush=True)


class Watcher:
    """Reads the topic of predictions, and shows a line of progress.

    Args:
        broker: ``HOST:PORT``.
        parts: Takes when the first prediction came.
    """

    def __init__(self, broker: str, parts: Parts) -> None:
        self._broker, self._parts = broker, parts
        self._ended = threading.Event()
        self.first = threading.Event()
        self.count = 0
        self._last: dict[str, Any] = {}
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._show)
        ]

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def _read(self) -> None:
        from kafka import KafkaConsumer

        consumer = KafkaConsumer(
            _PREDICTIONS,
            bootstrap_servers=self._broker,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        while not self._ended.is_set():
            for records in consumer.poll(timeout_ms=200).values():
                self.count += len(records)
                self._last = json.loads(records[-1].value)
                if not self.first.is_set():
                    self._parts.note(
                        "first prediction in the topic, after", time.monotonic() - self._parts.began
                    )
                    self.first.set()
        consumer.close()

    def _show(self) -> None:
        before, began = 0, time.monotonic()
        while not self._ended.wait(_SHOWN_EVERY_S):
            if not self._last:
                continue
            count, row, now = self.count, self._last, time.monotonic()
            rate = (count - before) / _SHOWN_EVERY_S
            delay_ms = (row["created_us"] - row["sent_us"]) / 1_000
            print(
                f"  {now - began:4.0f} s  {row['request_time'][:16]}  {count:>6,} predictions "
                f"({rate:,.0f}/s), the last after {delay_ms:,.0f} ms  {row['request_id']}: "
                f"{row['score']:.0%} late",
                flush=True,
            )
            before = count


def run(folder: Path, minutes: float, speed: float) -> int:
    """Run the demo.

    Args:
        folder: For all that it writes.
        minutes: How long the stream runs after its first prediction.
        speed: How many times faster than they happened the flights are sent.

    Returns:
        The number of mismatches.

    Raises:
        TidemillError: The folder holds something else, or a part of the demo failed.
    """
    from tidemill.pipelines.run.progress import QuietProgress
    from tidemill.pipelines.servers.kafka_settings import HOST
    from tidemill.pipelines.servers.local_servers import LocalServers
    from tidemill.pipelines.servers.ports import ReservedPort

    parts, progress = Parts(), QuietProgress()
    _clear(folder)
    with ExitStack() as ended, ReservedPort(HOST) as port:
        servers, broker = LocalServers(folder / "servers"), f"{HOST}:{port.port}"
        ended.callback(servers.stop)
        starting = _Background(lambda: _start_broker(servers, port.port))
        compiling = _Background(_compile)
        with parts.part("flights of November and December"):
            prepare(folder / "data")
            (folder / "tidemill.yaml").write_text(configuration(broker, speed))
        parts.note("broker (meanwhile)", starting.result())
        parts.note("kernel, compiled once (meanwhile)", compiling.result())
        config = _load(folder)
        with parts.part("features of November"):
            from tidemill.pipelines.history.backfill import backfill

            backfill(config, progress)
        if not (config.root / "bundles" / "current").exists():
            with parts.part("model, trained once"):
                from tidemill.pipelines.training.train import train

                train(config, progress)
        watcher = Watcher(broker, parts)
        watcher.start()
        ended.callback(watcher.stop)
        module = f"{__package__}.live_producer"
        command = [sys.executable, "-m", module, str(folder / "data"), broker, str(speed)]
        act = _Act(command, config.root, watcher, minutes)
        ended.callback(act.stop)
        act.start()
        from tidemill.pipelines.stream_run.stream import stream

        began = time.monotonic()
        figures = stream(config, progress)
        parts.note("stream", time.monotonic() - began)
        watcher.stop()
        print(
            f"  {figures['events']:,} events and {figures['requests']:,} requests in, "
            f"{figures['predictions']:,} predictions out, {watcher.count:,} of them read from the "
            f"topic; {figures['late']} late events"
        )
        with parts.part("verify: everything is recomputed in batch"):
            from tidemill.pipelines.verify.verify import verify

            proof = verify(config, progress)
    print(f"{proof['mismatches']:,} mismatches in {proof['values']:,} values")
    mismatches: int = proof["mismatches"]
    return mismatches


class _Act(threading.Thread):
    """Sends the flights once the stream reads, and ends both after some minutes of predictions.

    Args:
        command: The producer.
        root: Where the stream writes.
        watcher: Knows when the first prediction came.
        minutes: How long the stream goes on from then.
    """

    def __init__(
        self, command: Sequence[str], root: Path, watcher: Watcher, minutes: float
    ) -> None:
        super().__init__(daemon=True)
        self._command, self._root, self._watcher = command, root, watcher
        self._seconds = minutes * 60
        self._over = threading.Event()
        self._producer: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """See `_Act`."""
        while not any(self._root.glob("generations/*/live/topics.json")):
            if self._over.wait(0.1):
                return
        self._producer = subprocess.Popen(self._command)
        while not self._watcher.first.wait(0.1):
            if self._over.is_set():
                return
        if self._over.wait(self._seconds):
            return
        self._producer.terminate()
        print("the stream drains", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # as a person would; the stream keeps its state

    def stop(self) -> None:
        """End the producer."""
        self._over.set()
        self.join()
        if self._producer is not None:
            self._producer.kill()
            self._producer.wait()


class _Background:
    """A function that runs in a thread, and its seconds."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._failed: BaseException | None = None
        self._seconds = 0.0

        def run() -> None:
            began = time.monotonic()
            try:
                function()
            except BaseException as error:  # noqa: BLE001 - raised by `result`
                self._failed = error
            self._seconds = time.monotonic() - began

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def result(self) -> float:
        """Wait for its end; return its seconds, or raise its error."""
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        return self._seconds


def _start_broker(servers: Any, port: int) -> None:
    from tidemill.pipelines.servers.project_topics import make_topics

    server = servers.start_kafka(port)
    make_topics(server.address, TOPICS)


def _compile() -> None:
    from tidemill.features.kernel.compilation import compile_kernel

    compile_kernel()


def _load(folder: Path) -> Any:
    from tidemill.pipelines.config.configuration import load

    return load(folder / "tidemill.yaml")


def _clear(folder: Path) -> None:
    """Make the folder, or empty it but for the trained model.

    Raises:
        ConfigurationError: It holds something that this program has not written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise ConfigurationError(
            f"{folder} holds something that no live demo has written: name another --folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    shutil.rmtree(folder / "servers", ignore_errors=True)
    if (folder / "run").exists():
        for path in (folder / "run").iterdir():
            if path.name != "bundles":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; the status is 1 after a mismatch or an error."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make demo-live")
    parser.add_argument("--minutes", type=float, default=3.0, help="of predictions (3)")
    parser.add_argument(
        "--speed", type=float, default=2_000.0, help="times faster than it happened (2000)"
    )
    parser.add_argument("--folder", type=Path, default=Path("demo-live"))
    given = parser.parse_args(arguments)
    logging.getLogger("kafka").setLevel(logging.ERROR)  # it warns of the load of this machine
    try:
        return int(run(given.folder.absolute(), given.minutes, given.speed) != 0)
    except TidemillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
