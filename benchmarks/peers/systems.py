"""The systems that do the job: what starts each, and what it must have for that."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.environments import HERE, environment
from benchmarks.peers.rows import NAMES
from benchmarks.peers.watching import Answer
from tidemill.pipelines.servers.jars import fetched_jars
from tidemill.pipelines.servers.java import find_java
from tidemill.pipelines.servers.locked_jars import JarLock

_END_S: Final = 20.0
_TAIL: Final = 600
_TELLING: Final = re.compile(r"(Caused by|[A-Za-z.]*(Error|Exception)): .{10}")


class SystemFailed(Exception):
    """A system ended by itself, or did not begin: its last words."""


class System(ABC):
    """A system, running or not.

    Attributes:
        name: Its name.
        forms: The forms of messages that it reads.
        grid_ms: The grid on which its windows' begins move.
        promises: What its answers and its state promise.
    """

    name: str
    forms: Sequence[str] = ("rows", "json")
    grid_ms = 1
    promises = ""

    @abstractmethod
    def prepare(self) -> None:
        """Make what it needs, once."""

    @abstractmethod
    def start(self, run: Run) -> None:
        """Start it."""

    @abstractmethod
    def processes(self) -> Iterable[int]:
        """Return the numbers of its processes that others started."""

    @abstractmethod
    def failure(self) -> str | None:
        """Return its last words if it has ended by itself."""

    @abstractmethod
    def stop(self) -> None:
        """End all that was started."""

    def answer(self, found: dict[str, Any]) -> Answer | None:
        """Take an answer from a message of its topic; None if it is none."""
        return found["request"], found


class Run:
    """What a system is to do.

    Attributes:
        folder: A new folder for its state.
        bootstrap: The broker.
        topics: The topics of payments, of requests, and of answers.
        form: ``rows``, ``json`` or ``arrow``.
        parallelism: How many workers it may have.
        steady: Whether latency counts, and not the rate.
        begin_ms: A time before all rows.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        topics: tuple[str, str, str],
        form: str,
        parallelism: int,
        *,
        steady: bool,
        begin_ms: int,
    ) -> None:
        self.folder, self.bootstrap, self.topics = folder, bootstrap, topics
        self.form, self.parallelism, self.steady = form, parallelism, steady
        self.begin_ms = begin_ms


class Program(System):
    """A system that is a process, and what it starts."""

    _process: subprocess.Popen[bytes] | None = None
    _log = Path()

    def _start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Start the process in a folder, in a session of its own."""
        self._log = folder / "program.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> Iterable[int]:
        """Return its process."""
        return () if self._process is None else (self._process.pid,)

    def failure(self) -> str | None:
        """Return the end of its log, if it has ended."""
        if self._process is None or self._process.poll() is None:
            return None
        return last_words(self._log)

    def stop(self) -> None:
        """End it and all that it started."""
        if self._process is not None:
            end_group(self._process)
            self._process = None


class Peer(Program):
    """A program in an environment of its own.

    Args:
        name: Its name.
        promises: See `System`.
        folder: The folder of its program and its locks; its name by default.
        program: The file of its program.
    """

    def __init__(
        self, name: str, promises: str, folder: str = "", program: str = "program.py"
    ) -> None:
        self.name, self.promises = name, promises
        self._folder, self._program = HERE / (folder or name), program
        self._python = Path()
        self._jars: list[str] = []

    def prepare(self) -> None:
        """Make its environment, exactly as its lock says; and fetch its jars."""
        self._python = environment(self._folder)
        jars = self._folder / "jars.lock"
        if jars.exists():
            lock_of = JarLock(f"peer-{self._folder.name}", jars)
            self._jars = [str(jar) for jar in fetched_jars(lock_of)]

    def start(self, run: Run) -> None:
        """Start its program."""
        run.folder.mkdir(parents=True, exist_ok=True)
        payments, requests, answers = run.topics
        job = {
            "bootstrap": run.bootstrap,
            "payments": payments,
            "requests": requests,
            "answers": answers,
            "form": run.form,
            "parallelism": run.parallelism,
            "folder": str(run.folder),
            "steady": run.steady,
            "jars": self._jars,
        }
        path = run.folder / "job.json"
        path.write_text(json.dumps(job))
        java = machines_java()
        environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONHOME"},
            "PYTHONPATH": str(HERE / "shared"),
            "PATH": f"{self._python.parent}:{java.parent}:{os.environ['PATH']}",
            "JAVA_HOME": str(java.parents[1]),
            "JDK_JAVA_OPTIONS": "-Xmx2g",
            "PATHWAY_THREADS": str(run.parallelism),
            "PYSPARK_PYTHON": str(self._python),
        }
        command = [str(self._python), str(self._folder / self._program), str(path)]
        self._start(command, run.folder, environment)


class Pathway(Peer):
    """Pathway writes what changes: an answer, and later, perhaps, that it is another."""

    forms = ("rows",)

    def answer(self, found: dict[str, Any]) -> Answer | None:
        """Take an answer; None if it is one that is taken back."""
        if found["diff"] < 0:
            return None
        for key in NAMES:
            if key.startswith(("mean", "max")) and found[key] < 0:
                found[key] = None
        return found["request"], found


def last_words(log: Path) -> str:
    """Return the errors in a log, or its end if there are none."""
    text = log.read_text(errors="replace")
    found = [line.strip()[:_TAIL] for line in text.splitlines() if _TELLING.search(line)]
    return "; ".join(found[-2:]) if found else text[-_TAIL:]


def machines_java() -> Path:
    """Return the machine's own Java, or that of the servers: Spark needs a module it lacks."""
    found = shutil.which("java")
    return find_java() if found is None else Path(found).resolve()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group: SIGTERM, and then SIGKILL to the group."""
    with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


PEERS: Final = (
    Peer(
        "pyflink",
        "exact; state exactly once in checkpoints of 10 s, answers at least once",
    ),
    Peer(
        "pyflink-sql",
        "exact; state exactly once in checkpoints of 10 s, answers at least once",
        "pyflink",
        "sql_program.py",
    ),
    Peer(
        "spark",
        "exact where no row is later than the watermark; state exactly once in every micro-batch, "
        "answers at least once",
    ),
    Peer(
        "bytewax",
        "exact; state in snapshots of 10 s, answers at least once",
    ),
    Peer(
        "quix",
        "exact; state at least once in commits of 10 s, answers at least once",
    ),
    Pathway(
        "pathway",
        "exact in the end, corrected until then; inputs kept every 10 s, answers at least once",
    ),
)
