"""A flood of rejected rows is said at once, and not at every poll."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.support.scripted_topics import START, Rig, row
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.io.live.floods import AGAIN_S, LEAST, Floods


def records(count: int, reason: Reason = Reason.BROKEN_JSON) -> pa.RecordBatch:
    return rejected.batch(
        Stage.READ, stream="paid", partition=0, positions=np.arange(count),
        reasons=[reason] * count, details=["found no object"] * count,
        origins=[f"topic/0@{n}" for n in range(count)], payloads=[b"{"] * count,
    )  # fmt: skip


def test_a_flood_is_said_once_in_a_while_with_reason_and_example() -> None:
    said: list[str] = []
    floods = Floods(said.append)
    for second in range(int(AGAIN_S)):
        floods.note("paid", 0.1, 100, records(90), float(second))
    assert len(said) == 1
    assert "90 of the last 100 rows of 'paid' are rejected, 90 as broken_json" in said[0]
    assert "topic/0@89: found no object" in said[0]
    floods.note("paid", 0.1, 100, records(90), AGAIN_S)
    assert len(said) == 2


def test_few_rejected_rows_are_no_flood() -> None:
    said: list[str] = []
    floods = Floods(said.append)
    floods.note("paid", 0.1, 1, records(1), 0.0)
    floods.note("paid", 0.1, LEAST - 2, records(LEAST - 2), 1.0)
    floods.note("asked", 0.1, 1_000, records(100), 2.0)  # a tenth is allowed
    floods.note("asked", 0.1, 10, None, 2.0)
    assert said == []
    floods.note("paid", 0.1, 1, records(1, Reason.WRONG_TYPE), 3.0)
    assert len(said) == 1
    assert f"{LEAST - 1} as broken_json" in said[0]


def test_a_reader_says_so_and_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_rejected=0.1)
    rig.paid.send(*[b"{"] * LEAST, row("a", START))
    rig.step()
    assert [one["id"] for one in rig.rows("paid")] == ["a"]
    assert len(rig.said) == 1
    assert f"{LEAST} of the last {LEAST + 1} rows of 'paid' are rejected" in rig.said[0]
