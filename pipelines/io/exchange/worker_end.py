"""The worker's end of an exchange: what it is given, and what it hands over to the program.

A step that runs where the program's disk is not carries an `ExchangePlace`. It tells the program
what it would have written to the disk, and never waits for it: a job that loses a worker is made
again from the last savepoint, whatever was on its way. What comes over is in order for each worker.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import pyarrow as pa

from tidemill.features.errors import ExchangeError, NoSuchBucket, TidemillError
from tidemill.pipelines.io.exchange.journal import JournalWriter, patiently
from tidemill.pipelines.io.exchange.names import FILES, TRIED, UP, Told, list_of
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.sealed import Entry, read_sealed, removed, told
from tidemill.pipelines.io.exchange.sent_polls import SentPolls
from tidemill.pipelines.io.exchange.told_failures import tell_failures
from tidemill.pipelines.io.framing import Bytes, Document

_KEPT_S: Final = 0.05
"""So long is kept what nobody waits for: the next thing that somebody waits for takes it along."""

_LAST_WORD_S: Final = 5.0

_lock: Final = threading.Lock()
_here: Final[dict[ExchangePlace, WorkerEnd]] = {}


def _close_all() -> None:
    for end in _here.values():
        end.close()


atexit.register(_close_all)


@dataclass(frozen=True)
class ExchangePlace:
    """Where a job and its program meet; can be pickled.

    Attributes:
        url: The URL of the job's folder, which no other job has.
        root: The program's root, below which everything is that is handed over.
        code: What a worker must have imported, where the engine starts workers that nobody has
            looked at, and tries again and again what has failed: then a worker tells the program
            what is wrong. None where it is looked at before it takes work, and a failure ends the
            job.
    """

    url: str
    root: str
    code: ProgramCode | None = None

    def here(self) -> WorkerEnd:
        """Return this process's end.

        Raises:
            WorkerLacksModule: This process has not the `code`: it cannot import the project.
            WorkerCodeDiffers: Likewise: it has another one.
        """
        with _lock:
            if self not in _here:
                _here[self] = WorkerEnd(self)
            end = _here[self]
            if self.code is not None:
                end.check(self.code)
            return end

    def name(self, path: Path) -> str:
        """Return the name of a file or folder below the root.

        Raises:
            ValueError: It is elsewhere.
        """
        return path.relative_to(self.root).as_posix()


class WorkerEnd:
    """What a worker tells its program, and is given by it.

    Args:
        place: Where they meet.
    """

    def __init__(self, place: ExchangePlace) -> None:
        self._place, self._objects = place, Objects(place.url)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._taken: Callable[[], int] = lambda: 0
        self._counting = threading.Lock()
        self._tasks: int | None = None  # of a stream
        self._is_waiting = False
        self._journal = JournalWriter(
            self._objects, f"{UP}/{self.name}", self._beat, self._is_missed
        )
        self._polls: SentPolls | None = None
        self._folders: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._is_checked = False

    def wait_for_tasks(self) -> None:
        """Count as one that has a task until it gets the first, or ends: it may be lost before."""
        with self._counting:
            self._is_waiting = True
        self._count_task(1)
        self.flush()

    def begin_task(self) -> None:
        """Tell that a task of a job in batch begins here."""
        with self._counting:
            counts, self._is_waiting = self._is_waiting, False
        self._count_task(0 if counts else 1)

    def end_task(self) -> None:
        """Tell that one has ended; without any, nothing more is told, and nobody misses it."""
        self._count_task(-1)
        self.flush()

    def _count_task(self, more: int) -> None:
        with self._counting:
            tasks = self._tasks = (self._tasks or 0) + more
            self._taken = lambda: tasks
        if more:
            self._journal.tell(self._beat())

    def _is_missed(self) -> bool:
        """Tell whether the program would miss this process if it told nothing more."""
        with self._counting:
            tasks, is_waiting = self._tasks, self._is_waiting
        if not is_waiting:
            return tasks is None or tasks > 0
        try:
            return self._objects.get(TRIED) is not None  # it goes with the job
        except ExchangeError:
            return True

    def check(self, code: ProgramCode) -> None:
        """Check the code of this process once; what is wrong, now or later, is told the program.

        Raises:
            WorkerLacksModule: It cannot import the project.
            WorkerCodeDiffers: It has another one, or another Tidemill.
        """
        if self._is_checked:
            return
        try:
            code.check()
        except TidemillError:
            self._tell_failure(traceback.format_exc())
            raise
        tell_failures(self._tell_failure)
        self._is_checked = True

    def _tell_failure(self, text: str) -> None:
        with suppress(ExchangeError):  # nobody is reached: the failure itself is raised
            self.report_problem(text)

    def _beat(self) -> Entry:
        read = None if self._polls is None else self._polls.objects_read
        return told(Told.BEAT, {"taken": self._taken(), "read": read})

    def join(self) -> None:
        """Tell that this process is there, and wait until that is told.

        Raises:
            ExchangeError: The storage is not reached from here, or is not that of the program.
        """
        if patiently(lambda: self._objects.get(TRIED), at_first=True) is None:
            raise NoSuchBucket(
                f"the exchange {self._objects.shown} does not hold here what the program has "
                "written: another storage is reached, or none is mounted; let this machine reach "
                "the one of stream.exchange"
            )
        self._journal.tell(self._beat())
        self.flush()

    def report_problem(self, problem: str) -> None:
        """Tell what is wrong with this process, and wait until it is told.

        Raises:
            ExchangeError: The storage is not reached from here.
        """
        self._journal.tell(told(Told.PROBLEM, {"text": problem}))
        self.flush()

    def flush(self) -> None:
        """Wait until all that was told is written; errors as for `hand_over`."""
        self._journal.flush()

    def close(self) -> None:
        """Tell nothing more, and remove the copies of folders."""
        if self._polls is not None:
            self._polls.close()
        with suppress(ExchangeError):
            if self._is_waiting and self._is_missed():
                self._count_task(-1)
                self._journal.flush(_LAST_WORD_S)
        self._journal.close()
        for folder in self._folders.values():
            shutil.rmtree(folder.parent, ignore_errors=True)

    def report(self, taken: Callable[[], int]) -> None:
        """Let it be told again and again which poll an operator here has taken last."""
        self._taken = taken

    def hand_over(self, step: str, elements: Sequence[Bytes], *, is_awaited: bool = True) -> None:
        """Hand over the elements of a bundle to a step that runs in the program.

        Args:
            step: The step's name.
            elements: Encoded elements.
            is_awaited: Whether somebody waits for what the step does; else they are kept for a
                moment, and take no object for themselves.

        Raises:
            ExchangeError: What was told before could not be written.
        """
        entry = told(Told.ELEMENTS, {"step": step}, elements)
        self._journal.tell(entry, within_s=0.0 if is_awaited else _KEPT_S)

    def write(self, path: Path, data: Bytes, *, within_s: float = _KEPT_S) -> None:
        """Let the program write a file.

        Args:
            path: The file.
            data: What it holds.
            within_s: So long it may be kept before it is handed over.

        Raises:
            ExchangeError: As for `hand_over`.
        """
        entry = told(Told.FILE, {"path": self._place.name(path)}, [data])
        self._journal.tell(entry, within_s=within_s)

    def link(self, path: Path, other: Path) -> None:
        """Let the program give a file that was written another name; errors as for `hand_over`."""
        fields = {"path": self._place.name(path), "other": self._place.name(other)}
        self._journal.tell(told(Told.LINK, fields))

    def join_pieces(self, pieces: Sequence[Path], path: Path, data: Bytes) -> None:
        """Let the program write a file behind what is in others, which it removes."""
        names = [self._place.name(one) for one in pieces]
        fields = {"pieces": names, "path": self._place.name(path)}
        self._journal.tell(told(Told.JOIN, fields, [data]))

    def read(self, path: Path) -> pa.Buffer | None:
        """Read a file of a folder that the program has given; None if it has no such file.

        Raises:
            DamagedState: It is not what the program has given.
            ExchangeError: The storage is away, or refuses.
        """
        name = f"{FILES}/{self._place.name(path)}"
        found = self._given(name)
        if found is not None:
            return found.blobs[0]
        if name in self._names(path.parent):
            raise removed(self._objects.place(name))
        return None

    def _given(self, name: str) -> Document | None:
        data = patiently(lambda: self._objects.get(name))
        if data is None:
            return None
        (found,) = read_sealed(data, self._objects.place(name))
        return found

    def _names(self, folder: Path) -> list[str]:
        name = list_of(self._place.name(folder))
        found = self._given(name)
        if found is None:
            raise removed(self._objects.place(name))
        names: list[str] = found.fields["names"]
        return names

    def folder(self, path: Path) -> Path:
        """Return a copy on this machine's disk of a folder that the program has given.

        Raises:
            DamagedState: It is not what the program has given.
            ExchangeError: The storage is away, or refuses.
        """
        name = self._place.name(path)
        with self._lock:
            if name not in self._folders:
                self._folders[name] = self._copied(path)
            return self._folders[name]

    def _copied(self, path: Path) -> Path:
        copy = Path(tempfile.mkdtemp(prefix="tidemill-")) / path.name
        try:
            for name in self._names(path):
                found = self._given(name)
                if found is None:
                    raise removed(self._objects.place(name))
                to = copy / PurePosixPath(name).relative_to(f"{FILES}/{self._place.name(path)}")
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(found.blobs[0])
        except BaseException:
            shutil.rmtree(copy.parent, ignore_errors=True)
            raise
        return copy

    def polls(self) -> SentPolls:
        """Return the polls that the program sends: they are for one process.

        Raises:
            ExchangeError: What was told before could not be written.
        """
        if self._polls is None:
            self._journal.tell(told(Told.SOURCE, {}))
            self._polls = SentPolls(self._objects)
        return self._polls
