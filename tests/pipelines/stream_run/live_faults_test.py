"""Five faults of stream, broker and Redis under a live stream: nothing is lost, doubled or wrong.

`make faults` does the same at random, for longer (`benchmarks/faults.py`).
"""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.fault_run import (
    BROKER,
    KILL,
    PAUSE,
    REDIS,
    STREAM,
    Fault,
    FaultRun,
    random_faults,
)

FAULTS = (
    Fault(BROKER, KILL, 0.5),
    Fault(REDIS, KILL, 0.5),
    Fault(STREAM, KILL, 0.0),
    Fault(BROKER, PAUSE, 1.5),
    Fault(STREAM, PAUSE, 1.0),
)


def test_five_faults_lose_double_and_change_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with FaultRun(tmp_path, said.append).running() as run:
        for fault in FAULTS:
            run.suffer(fault)
        verdict = run.finish()
    assert len(said) == len(FAULTS), said
    assert verdict.ended_by_itself == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.requests > 25
    assert verdict.values == 4 * verdict.requests
    assert len(verdict.noticed_s) == 2


def test_a_seed_gives_the_same_faults_again() -> None:
    def first(count: int, seed: int) -> list[Fault]:
        return list(itertools.islice(random_faults(seed), count))

    assert first(30, 7) == first(30, 7) != first(30, 8)
    assert max(fault.seconds for fault in first(200, 1)) <= 20
    assert {(fault.victim, fault.how) for fault in first(100, 1)} == {
        (victim, how) for victim in (STREAM, BROKER, REDIS) for how in (KILL, PAUSE)
    }
