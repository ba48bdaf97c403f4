"""Reading journals: the next object of each is asked for by its number, and no folder is listed.

Storages are paid by the request. S3 takes as much for one list as for twelve questions whether an
object is there, and most questions find none: so these are the ones to ask often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

import pyarrow as pa

from tidemill.pipelines.io.exchange.journal import BEAT_S, name_of, patiently
from tidemill.pipelines.io.exchange.names import Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.sealed import read_sealed, removed
from tidemill.pipelines.io.framing import Document

_SOON_S: Final = 0.01
_LATE_S: Final = 0.1
_PART: Final = 3
"""One of so many parts of a silence passes before the next question."""
_AT_ONCE: Final = 8
"""So many objects of a journal are asked for at once, at most."""


def away_s(asked_s: float, answered_s: float) -> float:
    """Return how long a storage was away: nobody could tell anything meanwhile.

    Args:
        asked_s: When it was asked.
        answered_s: When it had answered.
    """
    return took_s if (took_s := answered_s - asked_s) > BEAT_S else 0.0


class Looks:
    """When to look what a journal tells next.

    Soon after something came, then ever more rarely, in proportion to the silence: what comes waits
    at most a third of the time for which nothing had come, and never longer than 0.1 s.

    Args:
        now_s: The time.
    """

    def __init__(self, now_s: float) -> None:
        self._came_s = self.due_s = now_s

    def note(self, now_s: float, *, has_come: bool, is_behind: bool) -> None:
        """Note what was found.

        Args:
            now_s: The time.
            has_come: Whether anything came but words that the writer lives.
            is_behind: Whether more is there.
        """
        if has_come:
            self._came_s = now_s
        silent_s = now_s - self._came_s
        self.due_s = now_s if is_behind else now_s + min(max(silent_s / _PART, _SOON_S), _LATE_S)


class Object(NamedTuple):
    """An object of a journal.

    Attributes:
        number: Its number.
        entries: What it tells.
    """

    number: int
    entries: Sequence[Document]

    @property
    def is_beat(self) -> bool:
        """Whether it only tells that its writer lives."""
        return all(one.key == Told.BEAT for one in self.entries)


class JournalReader:
    """Reads what a process tells.

    Args:
        objects: The storage.
        folder: The folder.
        is_over: Whether the answer of a storage that is away matters no more.
    """

    def __init__(
        self, objects: Objects, folder: str, is_over: Callable[[], bool] = lambda: False
    ) -> None:
        self._objects, self._folder, self._is_over = objects, folder, is_over
        self.number, self._full = 0, 0

    def _name(self, number: int) -> str:
        return f"{self._folder}/{name_of(number)}"

    def get(self, number: int) -> pa.Buffer | None:
        """Return an object's bytes; None if it is not there.

        Raises:
            ExchangeError: The storage was away, or has refused, for too long.
        """
        return patiently(lambda: self._objects.get(self._name(number)), self._is_over)

    @property
    def next_numbers(self) -> range:
        """What to ask for next: more than one while whatever is asked for is there."""
        return range(self.number, self.number + min(2 ** max(self._full - 1, 0), _AT_ONCE))

    def take(self, found: Sequence[pa.Buffer | None]) -> Iterator[Object]:
        """Yield the objects that have come.

        Args:
            found: What is there of `next_numbers`.

        Raises:
            DamagedState: One is not what was written there.
            ExchangeError: The storage was away, or has refused, for too long.
        """
        came = max((place for place, data in enumerate(found, 1) if data is not None), default=0)
        self._full = self._full + 1 if came == len(found) else 0
        for data in found[:came]:
            if data is None:
                # Asked for before it was written, or removed: its writer has gone on.
                data = self.get(self.number)
            place = self._objects.place(self._name(self.number))
            if data is None:
                raise removed(place)
            self.number += 1
            yield Object(self.number - 1, list(read_sealed(data, place)))

    @property
    def is_behind(self) -> bool:
        """Whether more is there, as far as is known: the last questions were all answered."""
        return self._full > 1

    def check_reached(self, number: int) -> None:
        """Check that an object was read that had been listed before it was asked for more.

        Raises:
            DamagedState: It was not, and the one to read next was not there.
        """
        if number >= self.number and not self._full:
            raise removed(self._objects.place(self._name(self.number)))

    def check_not_removed(self) -> None:
        """Check that the next object has not been written yet, where nothing came for long.

        Raises:
            DamagedState: It was, for the one behind it is there.
            ExchangeError: The storage was away, or has refused, for too long.
        """
        if self.get(self.number + 1) is not None and self.get(self.number) is None:
            raise removed(self._objects.place(self._name(self.number)))


def ask_all(
    readers: Sequence[JournalReader], pool: Executor
) -> Sequence[Sequence[pa.Buffer | None]]:
    """Ask for what several journals tell next, at the same time.

    Args:
        readers: The journals.
        pool: Where all questions but a single one wait for their answers.

    Returns:
        What `JournalReader.take` takes, for each of them.

    Raises:
        ExchangeError: The storage was away, or has refused, for too long.
    """
    asked = [(one, number) for one in readers for number in one.next_numbers]
    if len(asked) == 1:
        return [[readers[0].get(asked[0][1])]]
    found = iter(list(pool.map(lambda each: each[0].get(each[1]), asked)))
    return [[next(found) for _ in one.next_numbers] for one in readers]
