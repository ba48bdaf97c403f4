"""A stream's threads take short turns; whoever called it gets the turns of before back."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tidemill.pipelines.stream_run.short_turns import TURN_S, short_turns

BEFORE = 0.003


@pytest.fixture(autouse=True)
def _turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(BEFORE)
    yield
    sys.setswitchinterval(before)


def test_turns_are_short_while_the_block_runs() -> None:
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
    assert sys.getswitchinterval() == pytest.approx(BEFORE)


def test_a_block_that_fails_gives_them_back() -> None:
    with pytest.raises(ZeroDivisionError), short_turns():
        _ = 1 / 0
    assert sys.getswitchinterval() == pytest.approx(BEFORE)


def test_the_last_of_blocks_that_run_together_gives_them_back() -> None:
    one, two = short_turns(), short_turns()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(TURN_S)
    two.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(BEFORE)
