"""The worker's end of a job in batch: what a task is given, and what it leaves.

A task works in a folder of its own on this machine's disk, which stands for the program's root: a
file has the name there that it has below the root. What the task needs is copied there before, and
what it has written is put into the exchange when it is done. Nothing of it is in memory as a whole.

The promises:

* What a task leaves is seen whole: it counts as done when all that it has written is there.
* A task that is done again, by whatever process, leaves the same.
* A process that tells nothing while it has a task is missed (`WorkerEnd.begin_task`); and a task
  ends when the program that has submitted the job is silent.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.features.errors import EngineLost, ExchangeError
from tidemill.pipelines.io.exchange.chunked import ChunkedObject, put_file
from tidemill.pipelines.io.exchange.journal import SILENT_S, patiently
from tidemill.pipelines.io.exchange.names import DONE, DOWN, GIVEN, OUT, Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.sealed import read_sealed, removed, sealed, told
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace

_LOOK_S: Final = 5.0


@dataclass(frozen=True)
class TaskPlace:
    """Where the tasks of a job and their program meet; can be pickled.

    Attributes:
        meets: Where the job and its program meet.
        url: The URL of the folder of all jobs of the command, with what is given and left.
    """

    meets: ExchangePlace
    url: str

    @contextmanager
    def task(self, name: str) -> Iterator[Task]:
        """Do a task in the block, which calls `Task.leave` at its end.

        Args:
            name: Its name, which no other task of the job has.

        Raises:
            WorkerLacksModule, WorkerCodeDiffers: As `ExchangePlace.here`.
            EngineLost: The program is silent.
            ExchangeError: The storage is away, or refuses.
        """
        end = self.meets.here()
        end.begin_task()
        folder = Path(tempfile.mkdtemp(prefix="tidemill-task-"))
        try:
            yield Task(self, name, folder)
        except Exception:
            if self.meets.code is not None:  # the engine would try again
                with suppress(ExchangeError):  # the failure itself is raised
                    end.report_problem(traceback.format_exc())
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(ExchangeError):
                end.end_task()


@dataclass
class Task:
    """A task that is being done.

    Attributes:
        place: Where it meets the program.
        name: Its name.
        folder: The folder that stands for the root.
    """

    place: TaskPlace
    name: str
    folder: Path
    _given: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._files, self._job = Objects(self.place.url), Objects(self.place.meets.url)
        self._program = _watch(self._job)
        self._program.check()

    def at(self, path: Path) -> Path:
        """Return what stands for a path at or below the root."""
        return self.folder / path.relative_to(self.place.meets.root)

    def path_of(self, path: Path) -> Path:
        """Return the path at or below the root that a path in the folder stands for."""
        return Path(self.place.meets.root) / path.relative_to(self.folder)

    def take(self, name: str) -> dict[Path, Path]:
        """Copy what the program has given; what is below the root gets its place in the folder.

        Args:
            name: The name of a list (`batch_end.BatchEnd.job`).

        Returns:
            Path of the program's machine to the copy.

        Raises:
            DamagedState: It is not what the program has given.
            ExchangeError: The storage is away, or refuses.
        """
        self._program.check()
        listed = f"{GIVEN}/{name}"
        data = patiently(lambda: self._job.get(listed))
        if data is None:
            raise removed(self._job.place(listed))
        (found,) = read_sealed(data, self._job.place(listed))
        copies, columns = {}, (found.fields[one] for one in ("paths", "names", "below"))
        for path, given, is_below in zip(*columns, strict=True):
            copy = _copy(self._files, given)
            if is_below:
                here = self.at(Path(path))
                here.parent.mkdir(parents=True, exist_ok=True)
                if not here.exists():
                    os.link(copy, here)
                self._given.add(here)
                copy = here
            copies[Path(path)] = copy
        return copies

    def open(self, path: Path) -> ChunkedObject:
        """Open what an earlier task has left, by its path in the folder, without copying it.

        Raises:
            DamagedState: It is not what was left, or is not there.
            ExchangeError: The storage is away, or refuses.
        """
        self._program.check()
        return ChunkedObject(self._files, f"{OUT}/{path.relative_to(self.folder).as_posix()}")

    def leave(self, last: Sequence[Path] = (), keep: Callable[[Path], bool] | None = None) -> None:
        """Put what was written into the exchange; then the task is done.

        Args:
            last: Files, in the folder, that the program takes behind all others.
            keep: Tells whether a file, in the folder, is only for other tasks.

        Raises:
            EngineLost: The program is silent.
            ExchangeError: The storage is away, or refuses.
        """
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        written = [path for path in found if path not in self._given and path not in last]
        taken = []
        for path in [*written, *last]:
            self._program.check()
            name = path.relative_to(self.folder).as_posix()
            put_file(self._files, f"{OUT}/{name}", path)
            if path in last or keep is None or not keep(path):
                taken.append(name)
        self._program.check()
        name = f"{DONE}/{self.name}"
        pieces = list(sealed(self._job.place(name), [told(Told.DONE, {"names": taken})]))
        patiently(lambda: self._job.put(name, *pieces))


class _Program:
    """Looks, now and then, whether the program of a job tells something.

    Args:
        job: The folder of the job.
    """

    def __init__(self, job: Objects) -> None:
        self._job, self._lock = job, threading.Lock()
        self._last = ""
        self._looked_s = float("-inf")
        self._heard_s = time.monotonic()

    def check(self) -> None:
        """Check that it tells something.

        Raises:
            EngineLost: It has told nothing for too long.
            ExchangeError: The storage is away, or refuses.
        """
        with self._lock:
            began_s = time.monotonic()
            if began_s - self._looked_s < _LOOK_S:
                return
            names = patiently(lambda: self._job.names(DOWN))
            now_s = self._looked_s = time.monotonic()
            self._heard_s += now_s - began_s  # nobody can tell anything while storage is away
            if names and names[-1] != self._last:
                self._last, self._heard_s = names[-1], now_s
            elif now_s - self._heard_s > SILENT_S or (self._last and not names):
                raise EngineLost(
                    "the program that submitted the job tells nothing any more, and so the job ends"
                )


_lock: Final = threading.Lock()
_programs: Final[dict[str, _Program]] = {}
_copies: Final[dict[str, Path]] = {}
_folders: Final[list[Path]] = []


def _watch(job: Objects) -> _Program:
    with _lock:
        return _programs.setdefault(job.url, _Program(job))


def _copy(files: Objects, name: str) -> Path:
    """Return this process's copy of a file that the program has given; it is made once."""
    key = files.place(name)
    with _lock:
        if key not in _copies:
            if not _folders:
                _folders.append(Path(tempfile.mkdtemp(prefix="tidemill-given-")))
                atexit.register(shutil.rmtree, _folders[0], ignore_errors=True)
            path = _folders[0] / str(len(_copies))
            ChunkedObject(files, name).copy_to(path)
            _copies[key] = path
        return _copies[key]
