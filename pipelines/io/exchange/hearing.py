"""Hearing all workers of a job, also those that begin late.

Workers are found by listing their folders, about once a second. What each of them tells next is
asked for by its number in between (`pipelines.io.exchange.journal_reader`). A list also shows that
an object has been removed: one behind it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from tidemill.pipelines.io.exchange.journal import SILENT_S, patiently
from tidemill.pipelines.io.exchange.journal_reader import (
    JournalReader,
    Looks,
    Object,
    ask_all,
    away_s,
)
from tidemill.pipelines.io.exchange.names import UP
from tidemill.pipelines.io.exchange.objects import Objects

_FIRST_LISTS_S: Final = 0.1
_LISTS_S: Final = 1.0
"""So long after a list the next one is made; sooner while workers begin."""


@dataclass
class _Worker:
    """What is known of a worker.

    Attributes:
        reader: Reads its journal.
        looks: When.
        heard_s: When it was last seen that it has told something.
    """

    reader: JournalReader
    looks: Looks
    heard_s: float


class Hearing:
    """What workers tell.

    Args:
        objects: The storage.
        pool: Where questions wait for their answers.
        is_over: Whether the answer of a storage that is away matters no more.
    """

    def __init__(self, objects: Objects, pool: Executor, is_over: Callable[[], bool]) -> None:
        self._objects, self._pool, self._is_over = objects, pool, is_over
        self._workers: dict[str, _Worker] = {}
        self._lists_s, self._list_due_s = _FIRST_LISTS_S, 0.0
        self._looked_s, self._all_heard_s = 0.0, 0.0

    @property
    def has_heard(self) -> bool:
        """Whether any worker has told anything."""
        return bool(self._workers)

    @property
    def due_s(self) -> float:
        """When to hear the next time, by `time.monotonic`."""
        return min([self._list_due_s, *(one.looks.due_s for one in self._workers.values())])

    def hear(self) -> Iterator[tuple[str, Object]]:
        """Yield what has come, with the name of the worker; in order for each.

        Raises:
            DamagedState: It is not what was written there.
            ExchangeError: The storage was away, or has refused, for too long.
        """
        began_s = time.monotonic()
        is_listed = began_s >= self._list_due_s
        listed = self._list() if is_listed else {}
        due = [
            (name, one)
            for name, one in self._workers.items()
            if one.looks.due_s <= began_s or name in listed
        ]
        found = ask_all([one.reader for _, one in due], self._pool)
        looked_s = time.monotonic()
        for one in self._workers.values():
            one.heard_s += away_s(began_s, looked_s)
        for (name, one), of_worker in zip(due, found, strict=True):
            has_come = False
            for object_ in one.reader.take(of_worker):
                one.heard_s = looked_s
                has_come |= not object_.is_beat
                yield name, object_
            if name in listed:
                one.reader.check_reached(listed[name])
            is_behind = one.reader.is_behind
            one.looks.note(time.monotonic(), has_come=has_come, is_behind=is_behind)
        self._looked_s = looked_s
        if is_listed:
            self._all_heard_s = began_s

    def _list(self) -> dict[str, int]:
        """Return the last object of each worker, by name, as far as any is there."""
        found: dict[str, int] = {}
        for name in patiently(lambda: self._objects.names(UP), self._is_over):
            _, worker, *_, number = name.split("/")
            if number.isdecimal():  # a mounted disk may keep files of its own there
                found[worker] = max(int(number), found.get(worker, 0))
        now_s = time.monotonic()
        new = found.keys() - self._workers.keys()
        for worker in sorted(new):
            reader = JournalReader(self._objects, f"{UP}/{worker}", self._is_over)
            self._workers[worker] = _Worker(reader, Looks(now_s), now_s)
        self._lists_s = _FIRST_LISTS_S if new else min(2 * self._lists_s, _LISTS_S)
        self._list_due_s = now_s + self._lists_s
        return found

    def hear_all(self) -> float:
        """Let workers be listed the next time; return when that was asked (`has_heard_all`)."""
        asked_s = time.monotonic()
        self._list_due_s = 0.0
        return asked_s

    def has_heard_all(self, asked_s: float) -> bool:
        """Tell whether all that was told before then was heard, also of workers that are new."""
        return self._all_heard_s > asked_s

    def silent(self) -> list[str]:
        """Return the workers that have told nothing for too long."""
        # Not by the clock: while a topic takes nothing, nothing is taken of workers either.
        return [
            name
            for name, one in list(self._workers.items())
            if self._looked_s - one.heard_s > SILENT_S
        ]
