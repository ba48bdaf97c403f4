"""The program's end of jobs in batch: what it gives their tasks, and takes of what they leave.

A command has a folder in the exchange for all of its jobs: the files that it has given, and what
tasks have left. What one task leaves for others stays there; the rest the program takes into the
root, where it would be without an exchange, by names that it knows. Each job has a folder of its
own in that one, where workers tell what is wrong, and what is done.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from tidemill.features.errors import DamagedState, EngineLost, ExchangeError, InputError
from tidemill.pipelines.io.exchange.chunked import ChunkedObject, put_file
from tidemill.pipelines.io.exchange.journal import SILENT_S, patiently
from tidemill.pipelines.io.exchange.left import below
from tidemill.pipelines.io.exchange.names import BATCH, DONE, FILES, GIVEN, OUT, Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.program_end import ProgramEnd, exchange, opened
from tidemill.pipelines.io.exchange.sealed import SOMEBODY, read_sealed, removed, sealed, told
from tidemill.pipelines.io.exchange.task_place import TaskPlace
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.serving.files.file_errors import named_for

_LOOK_S: Final = 0.25

_log: Final = logging.getLogger(__name__)


class BatchEnd:
    """What a command gives the tasks of its jobs, and takes from them.

    Args:
        place: Where it meets them.
        writes: The folders below the root where tasks may have files written.
    """

    def __init__(self, place: ExchangePlace, writes: Sequence[Path]) -> None:
        self._place, self._writes = place, [path.resolve() for path in writes]
        self._objects = Objects(place.url)
        self._given: dict[str, tuple[int, int, int] | None] = {}

    @contextmanager
    def job(
        self, name: str, gives: Mapping[str, Sequence[Path]], code: ProgramCode | None
    ) -> Iterator[JobEnd]:
        """Give what a job needs, and meet its workers while the block runs.

        Args:
            name: The job's name, which no other one has.
            gives: The name of each list of files, and the files.
            code: What workers must have imported, if nobody looks at them before they take work.

        Raises:
            ExchangeError: The storage is away, or refuses.
            FileError: A file cannot be read.
            InputError: One was changed since it was given first.
        """
        place = ExchangePlace(below(self._place.url, name), self._place.root)
        at_work: dict[str, int] = {}
        with opened(place, (), at_work.__setitem__, _nothing_to_join) as program:
            if code is not None:
                program.let_workers_check(code)
            objects = Objects(place.url)
            for listed, paths in gives.items():
                self._give(objects, f"{GIVEN}/{listed}", paths)
            found = JobEnd(program, TaskPlace(program.place, self._place.url), self, at_work)
            program.begin(found.take_until, "take-done")
            program.take()
            yield found

    def _give(self, job: Objects, listed: str, paths: Sequence[Path]) -> None:
        root, names = Path(self._place.root), []
        below_root = [path.is_relative_to(root) for path in paths]
        for path, is_below in zip(paths, below_root, strict=True):
            name = f"{FILES}/{path.relative_to(root).as_posix() if is_below else _name_of(path)}"
            # What is below the root is replaced as a whole, or never changes.
            identity = None if is_below else _identity(path)
            if name not in self._given:
                put_file(self._objects, name, path)
                self._given[name] = identity
            if not is_below and self._given[name] != _identity(path):
                raise InputError(
                    f"{path} was changed while it was read; run again when it is complete"
                )
            names.append(name)
        fields = {"below": below_root, "names": names, "paths": [str(path) for path in paths]}
        pieces = list(sealed(job.place(listed), [told(Told.GIVEN, fields)]))
        patiently(lambda: job.put(listed, *pieces))

    def take(self, name: str) -> None:
        """Take a file that a task has left into the root.

        Raises:
            DamagedState: It is not what was left, or has no place there.
            ExchangeError: The storage is away, or refuses.
            FileError: It cannot be written.
        """
        path = Path(self._place.root, name)
        if not any(path.resolve().is_relative_to(folder) for folder in self._writes):
            raise DamagedState(
                f"{self._objects.shown}: a worker wants {name!r} to be written, which is not where "
                f"it writes; {SOMEBODY}"
            )
        ChunkedObject(self._objects, f"{OUT}/{name}").copy_to(path)

    def open(self, path: Path) -> ChunkedObject:
        """Open what a task has left, by its path below the root; errors as for `take`."""
        return ChunkedObject(self._objects, f"{OUT}/{self._place.name(path)}")

    def forget(self, folder: Path) -> None:
        """Remove what tasks have left below a folder of the root, which no task needs any more."""
        name = f"{OUT}/{self._place.name(folder)}"
        try:
            self._objects.remove_folder(name)
        except ExchangeError as error:  # it goes with all the rest
            _log.info("%s stays: %s", name, error)


class JobEnd:
    """A job whose workers are elsewhere, while it runs.

    Attributes:
        program: The program's end.
        place: Where tasks meet it.
    """

    def __init__(
        self, program: ProgramEnd, place: TaskPlace, of: BatchEnd, at_work: Mapping[str, int]
    ) -> None:
        self.program, self.place = program, place
        self._of, self._at_work = of, at_work
        self._objects = Objects(program.place.url)
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    def take_until(self, ended: threading.Event) -> None:
        """Take what tasks leave, until nothing more is wanted; the errors are those of `take`."""
        while not ended.wait(_LOOK_S):
            self.take()

    def take(self) -> None:
        """Take what the tasks have left that are done by now.

        Raises:
            DamagedState: It is not what they have left.
            ExchangeError: The storage is away, or refuses.
            FileError: It cannot be written.
        """
        with self._lock:
            for name in patiently(lambda: self._objects.names(DONE)):
                if name not in self._taken:
                    self._take(name)
                    self._taken.add(name)

    def _take(self, name: str) -> None:
        data = patiently(lambda: self._objects.get(name))
        if data is None:
            raise removed(self._objects.place(name))
        (found,) = read_sealed(data, self._objects.place(name))
        for one in found.fields["names"]:
            self._of.take(one)

    def check(self) -> None:
        """Raise why the job cannot go on, if it cannot; the engine sees which workers it has.

        Raises:
            ExchangeError: The storage was away for too long.
            TidemillError: What a task has left cannot be taken.
        """
        self.program.check_here()

    def check_workers(self) -> None:
        """Check, beside that, that no worker with a task is silent.

        Raises:
            EngineLost: One is.
        """
        self.check()
        for name in self.program.silent():
            if self._at_work.get(name):
                raise EngineLost(
                    f"the worker {name} has a task, and has told nothing for {SILENT_S:.0f} s"
                )


@contextmanager
def batch_exchange(
    url: str, root: Path, root_id: str, writes: Sequence[Path]
) -> Iterator[BatchEnd]:
    """Open the program's end of the jobs of a command; what killed ones have left is removed.

    Args:
        url: The URL of the configuration.
        root: The root.
        root_id: Its id.
        writes: The folders below the root where tasks may have files written.

    Raises:
        ExchangeError: The storage cannot be written or read.
    """
    name = f"{BATCH}{secrets.token_hex(8)}"
    with exchange(url, root, root_id, (), _nothing_taken, _nothing_to_join, name) as program:
        yield BatchEnd(program.place, writes)


def _identity(path: Path) -> tuple[int, int, int]:
    with named_for(path):
        found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _name_of(path: Path) -> str:
    """Return the name of a file that is not below the root."""
    of_folder = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return f"else/{of_folder}/{path.name}"


def _nothing_taken(_: str, __: int) -> None:
    """Take no note: tasks are no polls."""


def _nothing_to_join(*_: object) -> NoReturn:
    raise DamagedState(f"a worker of a job in batch has no pieces to join; {SOMEBODY}")
