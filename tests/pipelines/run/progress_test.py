"""Progress: bars on a terminal, few lines elsewhere, nothing when quiet; safe for threads."""

from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from tidemill.pipelines.run.progress import (
    PlainProgress,
    Progress,
    QuietProgress,
    TerminalProgress,
    make_progress,
)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_stage_is_a_line_at_its_start_and_one_at_its_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, clock=clock).stage("read orders", total=2_000) as stage:
        stage.advance(2_000)
        clock.now_s += 4
    assert lines(stream) == [
        "read orders: started (2,000 rows)",
        "read orders: 2,000 rows in 4.0 s (500 rows/s)",
    ]


def test_lines_between_are_rare_and_say_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, every_s=5, clock=clock).stage("read", total=10_000) as stage:
        for _ in range(100):
            clock.now_s += 0.11
            stage.advance(50)
    between = lines(stream)[1:-1]
    assert between == [
        "read: 2,300 of 10,000 rows, 455 rows/s, 17 s left",
        "read: 4,600 of 10,000 rows, 455 rows/s, 12 s left",
    ]


def test_without_a_total_nothing_is_said_of_the_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, clock=clock).stage("read", unit="files") as stage:
        clock.now_s += 10
        stage.advance(5)
        stage.expect(10)
        clock.now_s += 10
        stage.advance(0)
    assert lines(stream)[:3] == [
        "read: started",
        "read: 5 files, 0.5 files/s",
        "read: 5 of 10 files, 0.25 files/s, 20 s left",
    ]


def test_the_last_note_stands_in_the_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, clock=clock).stage("train", unit="") as stage:
        stage.note("loss 0.5")
        clock.now_s += 6
        stage.note("loss 0.4")
        clock.now_s += 60
    assert lines(stream) == [
        "train: started",
        "train: loss 0.4",
        "train: done in 1 min 06 s, loss 0.4",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_that_fails_says_so_and_the_error_goes_on(terminal: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    progress = make_progress(stream)

    def read() -> None:
        with progress.stage("read") as stage:
            stage.advance(7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert "read: failed after 0.0 s and 7 rows" in stream.getvalue()
    assert "rows in" not in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.949, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (4_200, "1 h 10 min"),
    ],
)
def test_times_are_written_for_a_reader(seconds: float, text: str) -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, clock=clock).stage("wait", unit=""):
        clock.now_s += seconds
    assert lines(stream)[-1] == f"wait: done in {text}"


def test_the_progress_suits_the_stream() -> None:
    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    assert isinstance(make_progress(Terminal()), TerminalProgress)
    assert isinstance(make_progress(Terminal(), quiet=True), QuietProgress)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress: Progress = QuietProgress()
    progress.say("hello")
    with progress.stage("read", total=3) as stage:
        stage.advance(3)
        stage.expect(4)
        stage.note("a note")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_bars_and_keeps_a_line_of_each_stage() -> None:
    stream = Terminal()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=120))
    for name in ("read [orders]", "join"):
        with progress.stage(name, total=10) as stage, progress.stage("inner", unit="") as inner:
            stage.advance(5)
            inner.note("half of it")
            progress.say("a line that stays")
            time.sleep(0.6)  # bars are drawn four times a second
            stage.advance(5)
    shown = stream.getvalue()
    assert "━" in shown
    assert "5 of 10 rows" in shown
    assert "half of it" in shown
    assert shown.count("a line that stays") == 2
    assert "read [orders]: 10 rows in" in shown
    assert "join: 10 rows in" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_threads_share_a_stage_and_run_stages_side_by_side(terminal: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    progress = make_progress(stream)
    with progress.stage("all", total=4_000) as everything:

        def work(place: int) -> None:
            with progress.stage(f"part {place}", total=1_000) as part:
                for _ in range(1_000):
                    part.advance()
                    everything.advance()

        threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    shown = stream.getvalue()
    assert "all: 4,000 rows in" in shown
    assert all(f"part {place}: 1,000 rows in" in shown for place in range(4))
