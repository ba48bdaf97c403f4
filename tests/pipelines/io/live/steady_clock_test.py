"""A machine's clock that steps: forward it is believed after a while, back at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scripted_topics import START, Rig
from tidemill.features.contract import HOUR, SECOND
from tidemill.pipelines.io.live.steady_clock import HOLD_S, STEP_US, SteadyClock


class Machine:
    """A clock that can be set, beside one that never steps."""

    def __init__(self) -> None:
        self.wall_us, self.now_s = START, 100.0
        self.said: list[str] = []
        self.clock = SteadyClock(lambda: self.wall_us, lambda: self.now_s, self.said.append)

    def passes(self, seconds: float) -> int:
        """Let time pass, and return what the clock tells."""
        self.wall_us += round(seconds * SECOND)
        self.now_s += seconds
        return self.clock()


def test_a_clock_that_does_not_step_is_followed() -> None:
    machine = Machine()
    for seconds in (0.0, 0.001, 1.0, 3_600.0):
        assert machine.passes(seconds) == machine.wall_us
    machine.wall_us += STEP_US - 1  # it is being corrected
    assert machine.passes(1.0) == machine.wall_us
    assert machine.said == []


def test_a_step_forward_is_believed_once_it_has_stayed() -> None:
    machine = Machine()
    right_us = machine.passes(1.0)
    machine.wall_us += HOUR
    assert machine.passes(1.0) == right_us + SECOND
    assert machine.passes(HOLD_S - 1.0) == right_us + round(HOLD_S * SECOND)
    assert machine.passes(1.0) == machine.wall_us
    assert machine.passes(1.0) == machine.wall_us
    assert len(machine.said) == 1
    assert "stepped forward by 3,600 s" in machine.said[0]


def test_a_step_forward_that_is_taken_back_is_never_believed() -> None:
    machine = Machine()
    right_us = machine.passes(1.0)
    for round_ in range(1, 4):
        machine.wall_us += HOUR
        machine.passes(1.0)
        machine.wall_us -= HOUR
        assert machine.passes(1.0) == machine.wall_us == right_us + round_ * 2 * SECOND
    assert len(machine.said) == 3


def test_a_step_back_is_followed_at_once() -> None:
    machine = Machine()
    machine.passes(1.0)
    machine.wall_us -= HOUR
    assert machine.passes(1.0) == machine.wall_us
    assert machine.said == []


@pytest.mark.parametrize("is_steady", [True, False])
def test_no_watermark_is_ahead_because_the_clock_was_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_steady: bool
) -> None:
    rig = Rig(tmp_path)
    if is_steady:
        clock = SteadyClock(lambda: rig.now_us, lambda: rig.seconds, rig.said.append)
        monkeypatch.setattr(rig.reader, "_clock_us", clock)
    rig.step(5.0)
    rig.now_us += HOUR
    for _ in range(5):
        rig.step(1.0)
    rig.now_us -= HOUR
    rig.step(1.0)
    # Without it the frontier is ahead: answers of an hour would be as of an instant to come.
    watermark_us = rig.watermark("paid")
    assert watermark_us is not None
    assert (watermark_us <= rig.now_us) == is_steady
    assert len(rig.said) == is_steady
