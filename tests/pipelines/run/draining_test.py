"""Draining: the first signal asks for an end in order, the second ends the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

import pytest

from tests.support.markdown import ROOT
from tidemill.pipelines.run.draining import draining

NUMBERS = (signal.SIGINT, signal.SIGTERM)


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
