"""The program's end of an exchange: what it gives workers, and what it makes of what they tell.

The program has the root, whose files are the only truth. Its workers have no disk in common with
it: it sends them polls and files, and writes what they hand over, as they would have written it. So
the poll log, savepoints and proofs are those of any other run.

What a worker of another job tells is never read: every job has a folder of its own. So a job that
was given up needs no waiting for workers that nobody reaches; stores refuse them by their tokens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import apache_beam as beam
import pyarrow as pa

from tidemill.features.errors import DamagedState, EngineLost, ExchangeError, ExchangeUnreachable
from tidemill.pipelines.io.batch_bytes import batch_bytes
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.exchange.hearing import Hearing
from tidemill.pipelines.io.exchange.journal import (
    BLOCK,
    SILENT_S,
    JournalWriter,
    block_of,
    patiently,
)
from tidemill.pipelines.io.exchange.left import below, remove_silent
from tidemill.pipelines.io.exchange.names import DOWN, FILES, TRIED, UP, Told, list_of
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.sealed import SOMEBODY, sealed, told
from tidemill.pipelines.io.exchange.steps import HandedStep, HandOver, coder_of
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.io.framing import Bytes, Document
from tidemill.pipelines.io.poll_source import PollSource
from tidemill.serving.files.atomic_write import link_again, write_bytes

_WAIT_S: Final = 0.002
_LAST_WORD_S: Final = 15.0
_TOGETHER: Final = 8
"""So many requests are under way to the storage at once."""

JoinPieces: TypeAlias = Callable[[Sequence[Path], Path, Bytes], None]

_log: Final = logging.getLogger(__name__)


class ProgramEnd:
    """What a program gives to the workers of a job, and takes from them.

    Args:
        place: Where they meet.
        writes: The folders below the root in which workers may have files written.
        report_taken: Is told, by worker, the number of the last poll that it has taken.
        join_pieces: Writes a file behind what is in others, which it removes.
    """

    def __init__(
        self,
        place: ExchangePlace,
        writes: Sequence[Path],
        report_taken: Callable[[str, int], None],
        join_pieces: JoinPieces,
    ) -> None:
        self.place, self._writes = place, [path.resolve() for path in writes]
        self._objects, self._report_taken = Objects(place.url), report_taken
        self._join_pieces = join_pieces
        self._pool = ThreadPoolExecutor(_TOGETHER, "exchange")
        self._steps: dict[str, HandedStep] = {}
        self._source: str | None = None
        self._problem = ""
        self._removed = 0
        self._ended = threading.Event()
        self._hearing = Hearing(self._objects, self._pool, self._ended.is_set)
        self._failed: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._journal = JournalWriter(self._objects, DOWN, lambda: told(Told.BEAT, {}))

    def let_workers_check(self, code: ProgramCode) -> None:
        """Let workers check their code, and tell what is wrong; no step is made yet."""
        self.place = replace(self.place, code=code)

    @property
    def has_heard(self) -> bool:
        """Whether any worker has told anything."""
        return self._hearing.has_heard

    @property
    def shown(self) -> str:
        """The URL of the job's folder, as errors show it."""
        return self._objects.shown

    def give(self, path: Path) -> None:
        """Give a folder, with all that is in it, to the workers.

        Raises:
            ExchangeError: The storage is away, or refuses.
        """

        def put(name: str, fields: Mapping[str, Any], *data: pa.Buffer) -> None:
            pieces = list(sealed(self._objects.place(name), [told(Told.GIVEN, fields, data)]))
            patiently(lambda: self._objects.put(name, *pieces), self._ended.is_set)

        def put_file(name: str, one: Path) -> None:
            with pa.memory_map(str(one)) as file:
                put(name, {}, file.read_buffer())

        found = [one for one in path.rglob("*") if one.is_file()]
        names = {f"{FILES}/{self.place.name(one)}": one for one in found}
        for done in [self._pool.submit(put_file, *each) for each in names.items()]:
            done.result()
        # Last: so whoever reads it knows that what it names was there.
        put(list_of(self.place.name(path)), {"names": sorted(names)})

    def send(self, polls: PollSource, start: Cut) -> None:
        """Send polls from now on, until the last one.

        Args:
            polls: Where they come from.
            start: The poll before the first.
        """

        def run() -> None:
            at = start
            while not self._ended.is_set():
                found = polls.next(at)
                if found is not None:
                    poll, refused = found
                    at = Cut(poll.number, tuple(part.stop for part in poll.parts))
                    blobs = [poll.encode(), *(batch_bytes(one) for one in refused)]
                    self._journal.tell(told(Told.POLL, {}, blobs))
                elif (last := polls.last(at)) is not None:
                    self._journal.tell(told(Told.END, {}, [last.encode()]))
                    return
                else:
                    self._ended.wait(_WAIT_S)

        self._start(run, "send-polls")

    def step(self, name: str, step: beam.DoFn, *, is_awaited: bool = True) -> HandOver:
        """Let a step at the pipeline's end run here; return what hands its elements over.

        Args:
            name: Its name.
            step: The step; it has no output.
            is_awaited: Whether somebody waits for what it does.
        """
        self._steps[name] = HandedStep(step)
        hints = step.get_type_hints()
        found = HandOver(self.place, name, coder_of(step), is_awaited=is_awaited)
        found.with_input_types(hints.input_types[0][0]).with_output_types(str)
        return found

    def take(self) -> None:
        """Take what workers tell from now on; all steps are known."""

        def run() -> None:
            while not self._ended.is_set():
                for name, object_ in self._hearing.hear():
                    for one in object_.entries:
                        self._take(name, one)
                    if (object_.number + 1) % BLOCK == 0:
                        self._remove_later(f"{UP}/{name}/{block_of(object_.number)}")
                self._ended.wait(max(self._hearing.due_s - time.monotonic(), 0.0))

        self._start(run, "take-told")

    def begin(self, run: Callable[[threading.Event], None], name: str) -> None:
        """Run something beside all else; its error ends the job.

        Args:
            run: It takes what is set when it should end.
            name: The name of its thread.
        """
        self._start(lambda: run(self._ended), name)

    def _start(self, run: Callable[[], None], name: str) -> None:
        def until_it_fails() -> None:
            try:
                run()
            except BaseException as error:  # noqa: BLE001 - raised by `check`
                self._failed = self._failed or error

        thread = threading.Thread(target=until_it_fails, daemon=True, name=name)
        self._threads.append(thread)
        thread.start()

    def check(self) -> None:
        """Raise why the job cannot go on, if it cannot.

        Raises:
            EngineLost: A worker has told nothing for too long, or the source has begun anew.
            ExchangeError: The storage was away for too long.
            TidemillError: What a worker has handed over cannot be written.
        """
        self.check_here()
        for name in self.silent():
            raise EngineLost(f"the worker {name} has told nothing for {SILENT_S:.0f} s")

    def check_here(self) -> None:
        """Check this end alone, as `check` does."""
        if self._failed is not None:
            raise self._failed
        self._journal.check()

    def silent(self) -> list[str]:
        """Return the workers that have told nothing for too long."""
        return self._hearing.silent()

    def problem(self) -> str:
        """Return what a worker has told is wrong with it; empty if none has."""
        return self._problem

    def last_problem(self) -> str:
        """Return the same, once all is taken that was told before now; it takes a moment."""
        asked_s = self._hearing.hear_all()
        while not (self._problem or self._failed or self._ended.wait(_WAIT_S)):
            is_late = time.monotonic() > asked_s + _LAST_WORD_S
            if is_late or self._hearing.has_heard_all(asked_s):
                break
        return self._problem

    def _remove_later(self, block: str) -> None:
        def remove() -> None:
            try:
                self._objects.remove_folder(block)
            except ExchangeError as error:  # it goes with the job's folder
                _log.info("%s stays: %s", block, error)

        self._pool.submit(remove)

    def _take(self, name: str, one: Document) -> None:
        fields = one.fields
        if one.key == Told.ELEMENTS:
            if (step := self._steps.get(fields["step"])) is None:
                raise DamagedState(f"{self._objects.shown}: {name}: no step {fields['step']!r}")
            step.take(one.blobs)
        elif one.key == Told.FILE:
            write_bytes(self._path(fields["path"]), one.blobs[0])
        elif one.key == Told.LINK:
            link_again(self._path(fields["path"]), self._path(fields["other"]))
        elif one.key == Told.BEAT:
            self._report_taken(name, fields["taken"])
            if fields["read"] is not None:
                self._remove_sent(fields["read"])
        elif one.key == Told.JOIN:
            pieces = [self._path(piece) for piece in fields["pieces"]]
            self._join_pieces(pieces, self._path(fields["path"]), one.blobs[0])
        elif one.key == Told.PROBLEM:
            self._problem = self._problem or fields["text"]
        elif one.key == Told.SOURCE:
            if self._source not in (None, name):
                raise EngineLost(
                    f"the engine has restarted the source ({name}, before {self._source}), whose "
                    "stages may have lost their states with it"
                )
            self._source = name

    def _path(self, name: str) -> Path:
        path = Path(self.place.root, name)
        if not any(path.resolve().is_relative_to(folder) for folder in self._writes):
            raise DamagedState(
                f"{self._objects.shown}: a worker wants {name!r} to be written, which is not where "
                f"it writes; {SOMEBODY}"
            )
        return path

    def _remove_sent(self, read: int) -> None:
        """Remove the blocks of our own journal that were read."""
        while self._removed + BLOCK <= read:
            self._remove_later(f"{DOWN}/{block_of(self._removed)}")
            self._removed += BLOCK

    def close(self) -> None:
        """Take and tell nothing more, and remove what the job has left."""
        self._ended.set()
        self._journal.close()
        for thread in self._threads:
            thread.join()
        for step in self._steps.values():
            step.close()
        self._pool.shutdown()
        try:
            self._objects.remove_folder("")
        except ExchangeError as error:
            _log.warning("what a job has left is removed when another one begins: %s", error)


@contextmanager
def exchange(
    url: str,
    root: Path,
    root_id: str,
    writes: Sequence[Path],
    report_taken: Callable[[str, int], None],
    join_pieces: JoinPieces,
    job: str,
) -> Iterator[ProgramEnd]:
    """Open the program's end of an exchange; the stream's lock is held.

    What earlier jobs of the root have left is removed meanwhile.

    Args:
        url: The URL of the configuration.
        root: The root.
        root_id: Its id.
        writes: As in `ProgramEnd`.
        report_taken: Likewise.
        join_pieces: Likewise.
        job: A name that no other job has.

    Raises:
        ExchangeError: The storage cannot be written or read.
    """
    place = ExchangePlace(below(url, root_id, job), str(root))
    with opened(place, writes, report_taken, join_pieces) as end:
        end.begin(lambda ended: remove_silent(url, root_id, job, ended), "remove-left")
        yield end


@contextmanager
def opened(
    place: ExchangePlace,
    writes: Sequence[Path],
    report_taken: Callable[[str, int], None],
    join_pieces: JoinPieces,
) -> Iterator[ProgramEnd]:
    """Open a program's end; arguments and errors as for `exchange` and `ProgramEnd`."""
    _try_out(Objects(place.url))
    end = ProgramEnd(place, writes, report_taken, join_pieces)
    try:
        yield end
    finally:
        end.close()


def _try_out(objects: Objects) -> None:
    """Check that objects can be written, listed and read."""
    name = TRIED
    objects.put(name, b"tidemill")
    found = objects.get(name)
    if found is None or found.to_pybytes() != b"tidemill" or name not in objects.names(FILES):
        raise ExchangeUnreachable(
            f"the exchange {objects.shown} does not give back what was just written"
        )
