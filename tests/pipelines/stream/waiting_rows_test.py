"""Waiting rows are released in their order, and written to a log that is small if they are few."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from tests.support.transcript import make_operator, parse
from tidemill.features.errors import DamagedState
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.sequence import REQUEST_ROWS
from tidemill.pipelines.stream.waiting_rows import MOST_IN_HEAD, WaitingLog, WaitingRows


def rows_of(times: Sequence[int], start: int = 0) -> pa.RecordBatch:
    count = len(times)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(["k"] * count),
            pa.array(times, pa.int64()),
            pa.array(range(start, start + count), pa.int64()),
            pa.array([0] * count, pa.int64()),
            pa.array(times, pa.int64()),
        ],
        schema=REQUEST_ROWS,
    )


def listed(rows: pa.RecordBatch | None) -> list[tuple[int, int]]:
    if rows is None:
        return []
    return list(
        zip(rows.column("time").to_pylist(), rows.column("ordinal").to_pylist(), strict=True)
    )


@dataclass
class Model:
    """Events and requests that wait, as the operator keeps them; and as lists."""

    kept: tuple[WaitingRows, WaitingRows] = field(
        default_factory=lambda: (WaitingRows(), WaitingRows())
    )
    expected: tuple[list[tuple[int, int]], ...] = field(default_factory=lambda: ([], []))
    log: WaitingLog = field(default_factory=WaitingLog)
    bag: list[bytes] = field(default_factory=list)
    number: int = 0
    moved: int = 0
    frontier: int = 0
    came: int = 0

    def poll(self, times: Sequence[Sequence[int]], frontier: int) -> None:
        """Take a poll that has these times of events and requests."""
        self.number += 1
        for kept, expected, mine in zip(self.kept, self.expected, times, strict=True):
            rows = rows_of(mine, self.came)
            self.came += len(mine)
            kept.add(rows)
            expected += listed(rows)
        if frontier <= self.frontier:
            return
        self.frontier, self.moved = frontier, self.number
        for kept, expected in zip(self.kept, self.expected, strict=True):
            assert listed(kept.release(frontier)) == [one for one in expected if one[0] < frontier]
            expected[:] = [one for one in expected if one[0] >= frontier]

    def write(self) -> int:
        """End a bundle; return how many bytes it writes to the log."""
        clears, entry = self.log.change(*self.kept, self.number)
        if clears:
            self.bag.clear()
        if entry is not None:
            self.bag.append(entry)
        return 0 if entry is None else len(entry)

    def check(self) -> None:
        """Compare with what is read, if the rows are in the log, else with what is kept."""
        found = self.kept
        if self.log.is_used:
            found = WaitingLog().restore(self.bag, REQUEST_ROWS, self.moved, self.frontier)
        else:
            assert self.bag == []
        assert tuple(listed(one.rows) for one in found) == self.expected
        assert tuple(len(one) for one in found) == tuple(map(len, self.expected))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_released_and_read_again_is_what_a_list_gives(seed: int) -> None:
    chance = random.Random(seed)
    model = Model()
    used = set()
    for _ in range(200):
        for _ in range(chance.randint(1, 3)):
            # Now and then the frontier stands still; some rows are behind it.
            ahead = chance.choice((5, 50, 2_000))
            times = [
                [model.frontier + chance.randint(-3, ahead) for _ in range(chance.randint(0, 30))]
                for _ in range(2)
            ]
            step = chance.choice((0, 0, 1, 40, 400))
            model.poll(times, model.frontier + step)
        model.write()
        chance.shuffle(model.bag)
        model.check()
        used.add(model.log.is_used)
        if chance.random() < 0.05 and model.log.is_used:
            model.kept = model.log.restore(model.bag, REQUEST_ROWS, model.moved, model.frontier)
    assert used == {True, False}


def test_a_bundle_writes_its_own_rows_only_however_many_wait() -> None:
    model = Model()
    written = []
    for poll in range(600):
        model.poll([[poll + 10_000] * 20, [poll + 10_000] * 5], frontier=0)
        written.append(model.write())
    assert max(written[100:]) == min(written[100:])
    assert len(model.bag) == 600 - MOST_IN_HEAD // 25
    model.check()


def test_the_log_is_written_anew_when_most_of_it_was_released() -> None:
    model = Model()
    sizes = []
    for poll in range(600):
        model.poll([[poll] * 20, [poll] * 5], frontier=max(poll - 20, 0))
        model.write()
        sizes.append(sum(map(len, model.bag)))
    assert sum(map(len, model.expected)) < 25 * 25
    assert max(sizes[300:]) <= max(sizes[:300])
    model.check()


def test_rows_that_were_released_all_leave_no_log() -> None:
    model = Model()
    model.poll([[7] * 500, []], frontier=0)
    model.write()
    assert len(model.bag) == 1
    model.poll([[], []], frontier=8)
    model.write()
    assert model.bag == []
    model.check()


def test_an_operator_goes_on_from_its_head_and_its_logs() -> None:
    """One whose rows are in the log releases what one that was never stopped does."""
    whole, stopped = make_operator(1, 1), make_operator(1, 1)
    bag: list[bytes] = []
    entries: list[bytes] = []
    ahead = " ".join(f"a@{100 + at}={at}" for at in range(300))
    texts = [
        [f"1 events 0 [0,300) <90: {ahead}", "1 requests 0 [0,1) <20: a@60"],
        ["2 events 0 [300,301) <300: a@299=5", "2 requests 0 [1,2) <30: a@250"],
        ["3 events 0 [301,301) <400", "3 requests 0 [2,2) <255"],
        ["4 events 0 [301,302) <500: a@301=1", "4 requests 0 [2,3) <500: a@420"],
    ]
    for poll in texts:
        batches = [parse(text) for text in poll]
        expected, releases = whole.receive(batches), stopped.receive(batches)
        assert [one.answers for one in releases] == [one.answers for one in expected]
        assert [one.mark for one in releases] == [one.mark for one in expected]
        entries += [one.entry for one in releases if one.entry is not None]
        clears, entry = stopped.log_waiting()
        bag = ([] if clears else bag) + ([] if entry is None else [entry])
        again = make_operator(1, 1)
        head = stopped.logged_head()
        again.restore(head, None, entries, lambda: bag)  # noqa: B023
        assert again.head() == whole.head()
        assert again.logged_head() == head
        stopped = again
        if stopped.waiting_log.is_used:
            assert len(head) < len(whole.head()) - 5_000
    assert not stopped.waiting_log.is_used
    assert bag == []


def test_a_damaged_entry_is_refused() -> None:
    operator = _with_many_waiting()
    entry = operator.log_waiting().entry
    assert entry is not None
    damaged = entry[:-1] + bytes([entry[-1] ^ 1])
    with pytest.raises(DamagedState, match="damaged"):
        make_operator(1, 1).restore(operator.logged_head(), None, [], lambda: [damaged])


def _with_many_waiting() -> ShardOperator:
    operator = make_operator(1, 1)
    ahead = " ".join(f"a@{100 + at}={at}" for at in range(300))
    operator.receive([parse(f"1 events 0 [0,300) <90: {ahead}"), parse("1 requests 0 [0,0) <20")])
    return operator
