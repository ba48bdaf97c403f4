"""Draining: the first signal asks for an end in order, the second ends the command."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from tests.support.markdown import ROOT
from tidemill.pipelines.run import draining as module
from tidemill.pipelines.run.draining import draining

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def hears_every_signal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests may run under `nohup`, and at a terminal that stays."""
    monkeypatch.setattr(module, "leave_closed_terminal", lambda _: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def second() -> Iterator[list[int]]:
    """What the handlers that were there before get."""
    got: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        got.append(number)

    before = {number: signal.signal(number, handler) for number in NUMBERS}
    yield got
    for number, was in before.items():
        signal.signal(number, was)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("other", NUMBERS)
def test_the_first_signal_asks_and_the_second_is_as_before(
    second: list[int], number: signal.Signals, other: signal.Signals
) -> None:
    said: list[str] = []
    with draining(said.append) as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), number)
        assert asked.wait(60)
        deadline = time.monotonic() + 60
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert (said, second) == ([said[0]], [])
        assert said[0].startswith(f"{number.name}: the stream takes what it has read")
        os.kill(os.getpid(), other)
        assert second == [other]
    os.kill(os.getpid(), number)
    assert second == [other, number]
    assert len(said) == 1


def test_the_handlers_are_as_before_after_the_block(second: list[int]) -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with draining(print):
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with suppress(KeyError), draining(print):
        raise KeyError
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert second == []


def test_another_thread_than_the_main_one_gets_no_signals(second: list[int]) -> None:
    found: list[bool] = []

    def drain() -> None:
        before = [signal.getsignal(number) for number in NUMBERS]
        with draining(print) as asked:
            found.append(asked.is_set())
            found.append([signal.getsignal(number) for number in NUMBERS] == before)

    thread = threading.Thread(target=drain)
    thread.start()
    thread.join()
    assert found == [False, True]
    assert second == []


def test_a_second_signal_ends_a_process_that_does_not_end() -> None:
    code = (
        "import time\n"
        "from tidemill.pipelines.run.draining import draining\n"
        "def say(text): print(text[:7], flush=True)\n"
        "with draining(say) as asked:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "SIGTERM\n"
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


def test_a_closed_terminal_asks_and_what_is_shown_afterwards_is_no_error(tmp_path: Path) -> None:
    done = tmp_path / "done"
    code = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from tidemill.pipelines.run.draining import draining\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "with draining(print) as asked:\n"
        "    print('ready', flush=True)\n"
        "    asked.wait(60)\n"
        "    print('to standard output', flush=True)\n"
        "    print('to standard error', file=sys.stderr, flush=True)\n"
        f"Path({str(done)!r}).write_text(str(asked.is_set()))\n"
    )
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        # A session leader that opens a terminal has it as its own.
        [sys.executable, "-c", f"import os; os.open(os.ttyname(0), os.O_RDWR)\n{code}"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(inside)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert process.wait(60) == 0
    assert done.read_text() == "True"


def test_nohup_keeps_its_promise() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with draining(print) as asked:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not asked.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
