"""What is watched while a system runs: its answers as they come, its CPU time and its memory."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from confluent_kafka import Consumer, TopicPartition

from benchmarks.peers.rows import NAMES, PARTITIONS

_AT_ONCE: Final = 10_000
_LOOK_S: Final = 0.25
_MEMORY_EVERY: Final = 4

Answer = tuple[str, dict[str, Any]]
"""The id of a request, and its features."""


class Answers:
    """Reads the committed messages of a topic in a thread, and notes when each came."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"reader-{topic}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer.assign([TopicPartition(topic, n, 0) for n in range(PARTITIONS)])
        self.came: list[tuple[float, list[bytes]]] = []
        """When messages came, in seconds since 1970, and their values."""
        self.count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            values = [
                one.value() for one in self._consumer.consume(_AT_ONCE, 0.05) if not one.error()
            ]
            if values:
                self.came.append((time.time(), values))
                self.count += len(values)

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()
        self._consumer.close()

    def read(self, parse: Callable[[Any], Answer | None]) -> Read:
        """Return what has come.

        Args:
            parse: Takes an answer from a message's object; None if it is none.
        """
        return Read([(at, [parse(json.loads(value)) for value in values])
                     for at, values in self.came])  # fmt: skip


class Read:
    """Answers by request.

    Attributes:
        answers: The last answer of each request.
        came: When that came, in seconds since 1970.
        repeated: How many answers were equal to one that came before.
        corrected: How many were another answer to the same request.
    """

    def __init__(self, parts: Iterable[tuple[float, list[Answer | None]]]) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.came: dict[str, float] = {}
        self.repeated = self.corrected = 0
        for at, found in parts:
            for one in found:
                if one is None:
                    continue
                name, answer = one
                before = self.answers.get(name)
                if before is not None:
                    equal = all(before[key] == answer[key] for key in NAMES)
                    self.repeated += equal
                    self.corrected += not equal
                    if equal:
                        continue
                self.answers[name], self.came[name] = answer, at


class Processes:
    """Samples the CPU time and the memory of some processes and all that they start."""

    def __init__(self, roots: Callable[[], Iterable[int]]) -> None:
        self._roots = roots
        self._seen: dict[tuple[int, float], float] = {}
        self.samples: list[tuple[float, float]] = []
        """When, in seconds since 1970, and how many seconds of CPU they had had until then."""
        self.most_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        looks = 0
        while not self._ended.wait(_LOOK_S):
            found: dict[tuple[int, float], psutil.Process] = {}
            for pid in self._roots():
                with contextlib.suppress(psutil.NoSuchProcess):
                    root = psutil.Process(pid)
                    for one in (root, *root.children(recursive=True)):
                        found[one.pid, one.create_time()] = one
            for key, one in found.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    self._seen[key] = times.user + times.system
            self.samples.append((time.time(), sum(self._seen.values())))
            if looks % _MEMORY_EVERY == 0:
                self.most_bytes = max(
                    self.most_bytes, sum(_bytes_of(one) for one in found.values())
                )
            looks += 1

    def cpu_s(self, begin: float, end: float) -> float:
        """Return the seconds of CPU time between two instants."""
        times, values = zip(*self.samples, strict=True)
        return float(np.interp(end, times, values) - np.interp(begin, times, values))

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()


def _bytes_of(process: psutil.Process) -> int:
    """Return the memory of a process; pages that it shares count in part (PSS)."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return (
        next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
    )
