"""Attempts: jobs whose workers are processes of their own, and how to be sure that none is left.

An engine of several processes may take a worker for dead that goes on writing, and a program that
is killed leaves its job behind. A stream repeats what came after its savepoint only when nobody
writes any more. So each job has a folder, its *attempt*, and locks there, which the system releases
when a process has ended, however it ended:

* The program that submitted the job holds one; without it the job's source stops, and a worker of a
  job without one ends the job (`pipelines.engines.worker`).
* Every worker holds another one, which all of them share, before it takes work. Whoever holds it
  alone knows that no worker is left (`pipelines.engines.flink_jobs`), and removes its file, so that
  no worker takes up work later.

An engine that restarts a job by itself would begin again with states that its stages have passed.
The source runs in one process for all of an attempt; another one is refused (`Attempt.watch`).

The locks are those of one machine: no worker runs on another one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from tidemill.features.errors import EngineLost
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.file_errors import named_for

ABANDONED: Final = "the program that submitted the job has ended, and so does the job"

_WATCH_S: Final = 1.0
_held: Final[list[FileIO]] = []


@dataclass(frozen=True)
class Attempt:
    """One job.

    Attributes:
        folder: Its folder; no other attempt has it.
    """

    folder: Path

    @staticmethod
    def below(folder: Path) -> Attempt:
        """Return a new attempt, below the folder of all of them."""
        return Attempt(folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}")

    @property
    def name(self) -> str:
        """The last part of its job's name."""
        return self.folder.name

    @property
    def workers_lock(self) -> Path:
        """The file that workers lock."""
        return self.folder / "workers.lock"

    @property
    def job(self) -> Path:
        """The record of the job."""
        return self.folder / "job.json"

    @property
    def _submitter(self) -> Path:
        return self.folder / "submitter.lock"

    @property
    def _source(self) -> Path:
        return self.folder / "source.json"

    @property
    def _problem(self) -> Path:
        return self.folder / "problem.txt"

    @property
    def worker_command(self) -> Path:
        """The program that starts a worker, where no other was named."""
        return self.folder / "worker"

    def outputs(self, name: str) -> Path:
        """Return the folder of outputs that workers leave for the submitter to deliver.

        Args:
            name: The section of the configuration that names the topic.
        """
        return self.folder / "outputs" / name

    @contextmanager
    def submitted(self) -> Iterator[None]:
        """Hold the submitter's lock while the block runs; the folder is made.

        Raises:
            FileError: It cannot be made.
        """
        # Whoever finds the folder by its name finds it locked.
        made = Attempt(self.folder.with_name(f".{self.folder.name}"))
        with named_for(self.folder):
            made.folder.mkdir(parents=True)
            made.workers_lock.touch()
            file = made._submitter.open("xb", buffering=0)
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with named_for(self.folder):
                made.folder.rename(self.folder)
            yield

    @property
    def is_submitted(self) -> bool:
        """Whether the program that submits the job, or has, still runs."""
        try:
            file = self._submitter.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may look, too
            except BlockingIOError:
                return True
        return False

    def take_up_work(self, process: dict[str, str | int]) -> None:
        """Hold the workers' lock until this process ends.

        Args:
            process: What names this process, so that another one can end it.

        Raises:
            EngineLost: The attempt is over.
        """
        try:
            file = self.workers_lock.open("rb", buffering=0)
        except OSError:
            raise self._over() from None
        fcntl.flock(file, fcntl.LOCK_SH)
        _held.append(file)
        # Whoever ended the attempt may have had the lock in between, and has removed its file then.
        if not self.workers_lock.exists():
            raise self._over()
        # Now that nobody removes the folder, which this would make again.
        write_text(self.folder / f"worker-{os.getpid()}.json", json.dumps(process))

    def remove(self) -> None:
        """Remove the folder; somebody else may remove it, too."""
        with named_for(self.folder):
            while self.folder.exists():
                with suppress(FileNotFoundError):
                    shutil.rmtree(self.folder)

    def leave_work(self) -> None:
        """Note that this process ends in order: it was asked to, or has no work left."""
        with suppress(FileNotFoundError):  # the attempt is over
            self._left(os.getpid()).touch()

    def has_left(self, pid: int) -> bool:
        """Tell whether a worker has ended in order."""
        return self._left(pid).exists()

    def _left(self, pid: int) -> Path:
        return self.folder / f"left-{pid}"

    def workers(self) -> list[dict[str, str | int]]:
        """Return what workers have said of their processes."""
        found = []
        for path in sorted(self.folder.glob("worker-*.json")):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):  # being written
                continue
        return found

    def report(self, problem: str) -> None:
        """Leave the program what is wrong with a worker that takes up no work; the first counts."""
        # Not `write_text`, which would make the folder of an attempt that is over again.
        with suppress(FileExistsError, FileNotFoundError), self._problem.open("xb", 0) as file:
            file.write(problem.encode())

    def problem(self) -> str:
        """Return what a worker has reported; empty if none has."""
        try:
            return self._problem.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def close_if_unused(self) -> bool:
        """Let no worker take up work any more, if none has the lock.

        Returns:
            Whether none has it.
        """
        try:
            file = self.workers_lock.open("rb")
        except FileNotFoundError:
            return True
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.workers_lock.unlink(missing_ok=True)
        return True

    def watch(self) -> Watch:
        """Return what the source asks in each of its calls."""
        return Watch(self)

    def _over(self) -> EngineLost:
        return EngineLost(f"the job of {self.folder} is over: no worker may take up its work")


class Watch:
    """Tells a source that it must stop.

    Args:
        attempt: The attempt.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._looked_s = float("-inf")

    def check(self) -> None:
        """Check that the source may go on.

        Raises:
            EngineLost: The program that submitted the job has ended; or the engine has begun the
                source in another process before.
        """
        now = time.monotonic()
        if now - self._looked_s < _WATCH_S:
            return
        first, self._looked_s = self._looked_s < 0, now
        if first:
            self._claim()
        if self._attempt.is_submitted:
            return
        raise EngineLost(ABANDONED) if self._attempt.folder.exists() else self._attempt._over()

    def _claim(self) -> None:
        path, me = self._attempt._source, f"{socket.gethostname()} {os.getpid()}"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(me)
        except FileExistsError:
            if (other := path.read_text(encoding="utf-8")) != me:
                raise EngineLost(
                    f"the engine has restarted the source ({me}, before {other}), whose stages "
                    "may have lost their states with it"
                ) from None
        except FileNotFoundError:
            raise self._attempt._over() from None
