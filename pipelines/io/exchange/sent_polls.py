"""The polls that a program sends to the source of its job, in the worker that runs it."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa

from tidemill.features.errors import EngineLost
from tidemill.pipelines.io.batch_bytes import batch_of
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.exchange.journal import BEAT_S, SILENT_S
from tidemill.pipelines.io.exchange.journal_reader import (
    JournalReader,
    Looks,
    Object,
    ask_all,
    away_s,
)
from tidemill.pipelines.io.exchange.names import DOWN, Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.poll import Poll

_DOUBT_S: Final = 3 * BEAT_S
"""After so long without a word of the program it is looked whether somebody has removed one."""
_TOGETHER: Final = 4


class SentPolls:
    """Polls that the program sends (`program_end.ProgramEnd.send`).

    A thread reads them, so that no bundle of the engine waits for the storage.

    Args:
        objects: The storage.
    """

    def __init__(self, objects: Objects) -> None:
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(_TOGETHER, "polls")
        self._journal = JournalReader(objects, DOWN, self._ended.is_set)
        self._polls: deque[tuple[Poll, list[pa.RecordBatch]]] = deque()
        self._end: Poll | None = None
        self._failed: BaseException | None = None
        self._heard_s = self._looked_s = self._sure_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="hear-program")
        self._thread.start()

    @property
    def objects_read(self) -> int:
        """How many objects of the program's journal were read: they may be removed."""
        return self._journal.number

    def check(self) -> None:
        """Check that the program goes on.

        Raises:
            EngineLost: It has told nothing for too long.
            DamagedState: What it has told is not what is read.
            ExchangeError: The storage was away, or has refused, for too long.
        """
        if self._failed is not None:
            raise self._failed
        if self._looked_s - self._heard_s > SILENT_S:
            raise EngineLost(
                f"the program that submitted the job has told nothing for {SILENT_S:.0f} s"
            )

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        """Return the poll after another and its rejected records, if it has come.

        Raises:
            EngineLost: The source begins again before that.
        """
        if not self._polls:
            return None
        poll, refused = self._polls.popleft()
        if poll.number != at.number + 1:
            raise EngineLost(
                f"the engine has restarted the source after poll {at.number}, and the program has "
                f"sent polls up to {poll.number}"
            )
        return poll, refused

    def last(self, at: Cut) -> Poll | None:
        """Return the last poll, if the program has sent it and all before it are taken."""
        end = self._end  # first: all polls before it are there when it is
        return None if self._polls else end

    def close(self) -> None:
        """Read no more."""
        self._ended.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        looks = Looks(time.monotonic())
        try:
            while not self._ended.is_set():
                self._look(looks)
                self._ended.wait(max(looks.due_s - time.monotonic(), 0.0))
        except BaseException as error:  # noqa: BLE001 - raised by `check`
            self._failed = error

    def _look(self, looks: Looks) -> None:
        began_s = time.monotonic()
        (found,) = ask_all([self._journal], self._pool)
        now_s = time.monotonic()
        self._heard_s += away_s(began_s, now_s)
        self._looked_s, has_come = now_s, False
        for object_ in self._journal.take(found):
            self._heard_s = now_s
            has_come |= not object_.is_beat
            self._take(object_)
        if now_s - max(self._heard_s, self._sure_s) > _DOUBT_S:
            self._journal.check_not_removed()
            self._sure_s = time.monotonic()
        looks.note(time.monotonic(), has_come=has_come, is_behind=self._journal.is_behind)

    def _take(self, object_: Object) -> None:
        for one in object_.entries:
            if one.key == Told.POLL:
                poll, *refused = one.blobs
                rows = [found for data in refused if (found := batch_of(data)) is not None]
                self._polls.append((Poll.decode(poll, is_checked=True), rows))
            elif one.key == Told.END:
                self._end = Poll.decode(one.blobs[0], is_checked=True)
