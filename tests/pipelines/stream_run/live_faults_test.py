"""Five faults of stream, broker and Redis under a live stream: nothing is lost, doubled or wrong.

`make faults` does the same at random, for longer (`benchmarks/faults.py`).
"""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.fault_kinds import KINDS, Fault, each_kind, kinds, random_faults
from tests.support.fault_run import FaultRun

FAULTS = (
    Fault("kill_broker", 0.5),
    Fault("kill_store", 0.5),
    Fault("kill_program"),
    Fault("pause_broker", 1.5),
    Fault("pause_program", 1.0),
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
    names = kinds(frozenset())

    def first(count: int, seed: int) -> list[Fault]:
        return list(itertools.islice(random_faults(seed, names), count))

    assert first(30, 7) == first(30, 7) != first(30, 8)
    assert max(fault.seconds for fault in first(200, 1)) <= 20
    assert {fault.kind for fault in first(200, 1)} == set(names)
    assert [fault.kind for fault in each_kind(names)] == names


def test_every_kind_is_a_function_of_its_name_that_says_what_it_does() -> None:
    for name, kind in KINDS.items():
        assert kind.do.__name__ == name
        assert kind.do.__doc__
    assert set(kinds(frozenset())) == {
        "kill_program", "pause_program", "kill_broker", "pause_broker", "kill_store", "pause_store",
        "stop_and_resume",
    }  # fmt: skip
