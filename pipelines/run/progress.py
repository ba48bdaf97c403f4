"""The progress of long steps.

A step uses the `Progress` protocol and knows nothing of terminals:

>>> with QuietProgress().stage("read orders", total=2_000) as stage:
...     stage.advance(1_000)
...     stage.note("orders-01.csv")

Three implementations: `TerminalProgress` draws bars with a rate and the time left;
`PlainProgress` writes the first and the last line of each stage and, between them, a line every few
seconds; `QuietProgress` writes nothing. Several threads may use each of them at once; stages may be
nested or run in parallel. Progress goes to standard error, results to standard output.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_S: Final = 5.0
"""The least time between two lines of a stage, in seconds."""


class StageProgress(Protocol):
    """The progress of one running step."""

    def advance(self, count: int = 1) -> None:
        """Add ``count`` to the number done."""

    def expect(self, total: int) -> None:
        """Set the total, if it was not known at the start."""

    def note(self, text: str) -> None:
        """Show a note; it replaces the one before."""


class Progress(Protocol):
    """Shows the progress of steps."""

    def stage(
        self, name: str, total: int | None = None, unit: str = "rows"
    ) -> AbstractContextManager[StageProgress]:
        """Show a step until it ends or fails.

        Args:
            name: The step, such as ``read orders``.
            total: The number of units; None if it is unknown.
            unit: The unit, in the plural; empty if nothing is counted.
        """

    def say(self, text: str) -> None:
        """Show a permanent line."""


def make_progress(stream: TextIO, *, quiet: bool = False) -> Progress:
    """Return bars for a terminal, lines for any other stream."""
    if quiet:
        return QuietProgress()
    if stream.isatty():
        from rich.console import Console

        return TerminalProgress(Console(file=stream))
    return PlainProgress(stream)


class QuietProgress:
    """Shows nothing."""

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int | None = None, unit: str = "rows"
    ) -> Iterator[StageProgress]:
        """Show nothing; see `Progress.stage`."""
        yield _Shown(_Count(name, total, unit), lambda: None)

    def say(self, text: str) -> None:
        """Show nothing; see `Progress.say`."""


class PlainProgress:
    """Writes lines.

    Args:
        stream: The stream to write to.
        every_s: The least time between two lines of a stage, in seconds.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int | None = None, unit: str = "rows"
    ) -> Iterator[StageProgress]:
        """Write a line at the start, at the end and every few seconds; see `Progress.stage`."""
        count = _Count(name, total, unit, self._clock)
        last_line = count.started

        def maybe_say() -> None:
            nonlocal last_line
            with count.lock:
                now = self._clock()
                due = now - last_line >= self._every_s
                if due:
                    last_line = now
            if due:
                self.say(count.so_far())

        of = f" ({total:,} {unit})" if total is not None and unit else ""
        self.say(f"{name}: started{of}")
        try:
            yield _Shown(count, maybe_say)
        except BaseException:
            self.say(count.failed())
            raise
        self.say(count.done())

    def say(self, text: str) -> None:
        """Write a line; see `Progress.say`."""
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()


class TerminalProgress:
    """Draws a bar for each running stage, and prints a line for each that has ended."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = console
        self._lock = threading.Lock()
        self._at_work = 0
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=4,
        )

    @contextlib.contextmanager
    def stage(
        self, name: str, total: int | None = None, unit: str = "rows"
    ) -> Iterator[StageProgress]:
        """Draw a bar, then print a line; see `Progress.stage`."""
        from rich.progress import TaskID

        count = _Count(name, total, unit)
        bars = self._bars
        with self._lock:
            if self._at_work == 0:
                bars.start()
            self._at_work += 1
        task: TaskID = bars.add_task(name, total=total, figures="", note="")

        def draw() -> None:
            bars.update(
                task,
                completed=count.done_so_far,
                total=count.total,
                figures=count.figures(),
                note=count.last_note,
            )

        failed = True
        try:
            yield _Shown(count, draw)
            failed = False
        finally:
            bars.remove_task(task)
            with self._lock:
                self._at_work -= 1
                if self._at_work == 0:
                    bars.stop()
            self.say(count.failed() if failed else count.done())

    def say(self, text: str) -> None:
        """Print a line above the bars; see `Progress.say`."""
        self._console.print(text, markup=False, highlight=False)


@dataclass
class _Count:
    """The counts of a stage, and the texts that show them; several threads use it at once."""

    name: str
    total: int | None
    unit: str
    clock: Callable[[], float] = time.monotonic
    done_so_far: int = 0
    last_note: str = ""
    started: float = field(init=False)
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, count: int) -> None:
        with self.lock:
            self.done_so_far += count

    @property
    def elapsed_s(self) -> float:
        return self.clock() - self.started

    @property
    def rate(self) -> float:
        elapsed = self.elapsed_s
        return self.done_so_far / elapsed if elapsed > 0 else 0.0

    def figures(self) -> str:
        """Return ``120,000 of 336,776 rows, 42,000 rows/s``; empty without a unit."""
        if not self.unit:
            return ""
        done = f"{self.done_so_far:,}"
        of = f" of {self.total:,}" if self.total is not None else ""
        return f"{done}{of} {self.unit}, {_rate(self.rate)} {self.unit}/s"

    def left(self) -> str:
        """Return ``8.1 s left``; empty if it cannot be estimated."""
        if self.total is None or not self.rate or self.done_so_far >= self.total:
            return ""
        return f"{_seconds((self.total - self.done_so_far) / self.rate)} left"

    def so_far(self) -> str:
        parts = [part for part in (self.figures(), self.left(), self.last_note) if part]
        return f"{self.name}: {', '.join(parts) or _seconds(self.elapsed_s)}"

    def done(self) -> str:
        if not self.unit:
            text = f"{self.name}: done in {_seconds(self.elapsed_s)}"
        else:
            text = (
                f"{self.name}: {self.done_so_far:,} {self.unit} in {_seconds(self.elapsed_s)} "
                f"({_rate(self.rate)} {self.unit}/s)"
            )
        return f"{text}, {self.last_note}" if self.last_note else text

    def failed(self) -> str:
        counted = f" and {self.done_so_far:,} {self.unit}" if self.unit else ""
        return f"{self.name}: failed after {_seconds(self.elapsed_s)}{counted}"


class _Shown:
    """The progress of a step; calls ``show`` after every change."""

    def __init__(self, count: _Count, show: Callable[[], None]) -> None:
        self._count = count
        self._show = show

    def advance(self, count: int = 1) -> None:
        self._count.add(count)
        self._show()

    def expect(self, total: int) -> None:
        self._count.total = total
        self._show()

    def note(self, text: str) -> None:
        self._count.last_note = text
        self._show()


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _seconds(seconds: float) -> str:
    """Write a duration: ``0.3 s``, ``45 s``, ``2 min 05 s``, ``1 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
