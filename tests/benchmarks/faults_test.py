"""How the figures of faults are shown and written; that faults happen is tested elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.faults import is_bad, parser, said, table, write
from tests.support.fault_kinds import Fault
from tests.support.fault_run import Recovery, Verdict

SUFFERED = [
    Recovery(Fault("kill_broker", 1.0), 1.0, 2.0, 3.0, 10),
    Recovery(Fault("pause_store", 2.0), 2.0, 4.0, 5.0, 20),
    Recovery(Fault("kill_broker", 1.0), 1.5, 2.5, 3.5, 30),
]
GOOD = Verdict(120, 30, 1, 0, 0, (), (), (True,))


def test_a_table_has_a_line_for_each_kind() -> None:
    assert [re.split(r"\s{2,}", line) for line in table(SUFFERED).splitlines()[1:]] == [
        ["kill broker", "2", "1.0 to 1.5", "2.0 to 2.5", "3.0 to 3.5"],
        ["pause store", "1", "2.0", "4.0", "5.0"],
    ]


def test_what_is_lost_doubled_not_fenced_or_ended_is_bad_and_said() -> None:
    assert not is_bad(GOOD)
    assert "of 30 requests 1 rejected, 0 lost, 0 doubled" in said(GOOD, 3, 1.0, 7)
    for changed in (
        {"lost": 1},
        {"doubled": 1},
        {"ended_by_itself": ("oh",)},
        {"fenced": (False,)},
    ):
        assert is_bad(Verdict(**{**vars(GOOD), **changed}))


def test_figures_of_one_way_to_run_faults_stand_beside_those_of_others(tmp_path: Path) -> None:
    for arguments, verdict in (
        (["--restores", "20", "--seed", "1"], GOOD),
        (["--each", "--kinds", "kill_broker", "pause_store", "--seed", "2"], GOOD),
        (["--restores", "20", "--seed", "3"], Verdict(4, 1, 0, 0, 0, (), ())),
    ):
        given = parser().parse_args([*arguments, "--engine", "flink", "--results", str(tmp_path)])
        write(given, SUFFERED, verdict, 1.0, [2.0, 4.0])
    found = json.loads((tmp_path / "flink_faults.json").read_text())
    figures = {one["name"]: one["value"] for one in found["figures"]}
    assert figures["restores, parallelism 1: requests"] == 1
    assert figures["each kind, parallelism 1: requests"] == 30
    assert figures["each kind, parallelism 1: fenced by the store, or ended"] == 1
    assert figures["restores, parallelism 1: kill broker"] == 3.25
    restores, each = found["command"].split("; ")
    said_of = "parallelism 1: python -m benchmarks.faults --engine flink"
    assert restores == f"restores, {said_of} --restores 20 --seed 3"
    assert each == f"each kind, {said_of} --each --kinds kill_broker pause_store --seed 2"
