"""Outputs that workers of other processes leave: each is handed over once, whole, and in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from tidemill.features.errors import BrokerError
from tidemill.pipelines.config.sink_section import REJECTED
from tidemill.pipelines.delivery.delivery import Delivery
from tidemill.pipelines.delivery.left_outputs import LeftOutputs
from tidemill.pipelines.delivery.outbox import Handed, Outbox
from tidemill.pipelines.delivery.topic_sink import TopicSink
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.output_parts import Output, PartWriter
from tidemill.pipelines.io.write_outputs import WriteOutputs


class Box:
    """Takes what is handed over, as an outbox does."""

    def __init__(self) -> None:
        self.handed: list[tuple[Path, int, str, list[Any]]] = []
        self.fails: BrokerError | None = None

    def put(self, handed: Sequence[Handed]) -> None:
        if self.fails is not None:
            raise self.fails
        for one in handed:
            for output in one.outputs:
                rows = output.rows.column("n").to_pylist()
                self.handed.append((one.folder, one.segment, output.name, rows))


def output(number: int) -> Output:
    return Output(f"o-{number}", pa.RecordBatch.from_pydict({"n": [number, number + 1]}))


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def box() -> Box:
    return Box()


def taker(tmp_path: Path, box: Box) -> LeftOutputs:
    return LeftOutputs(tmp_path / "left", tmp_path / "predictions", cast(Outbox, box))


def test_what_two_workers_leave_is_handed_over_once_in_the_order_of_each(
    tmp_path: Path, box: Box
) -> None:
    left = taker(tmp_path, box)
    workers = [PartWriter(tmp_path / "left") for _ in range(2)]
    for number in range(0, 40, 2):
        workers[number % 4 // 2].append(1 + number // 20, [output(number), output(number + 1)])
    until(lambda: len(box.handed) == 40)
    workers[0].append(3, [output(40)])
    left.finish()
    assert sorted(int(name[2:]) for _, _, name, _ in box.handed) == list(range(41))
    for worker in (0, 1):
        mine = [int(n[2:]) for _, _, n, _ in box.handed if int(n[2:]) % 4 // 2 == worker]
        assert mine == sorted(mine)
    assert {(folder, rows[1] - rows[0]) for folder, _, _, rows in box.handed} == {
        (tmp_path / "predictions", 1)
    }
    assert [segment for _, segment, name, _ in box.handed if name in ("o-0", "o-20", "o-40")] == [
        1, 2, 3,
    ]  # fmt: skip


def test_parts_of_segments_that_count_are_removed_and_what_comes_too_late_is_taken(
    tmp_path: Path, box: Box
) -> None:
    left = taker(tmp_path, box)
    worker = PartWriter(tmp_path / "left")
    worker.append(1, [output(0)])
    until(lambda: len(box.handed) == 1)
    left.forget(1)
    assert list((tmp_path / "left").iterdir()) == []
    worker.append(1, [output(1)])
    left.finish()
    assert [name for _, _, name, _ in box.handed] == ["o-0", "o-1"]


def test_why_nothing_is_taken_any_more_is_raised(tmp_path: Path, box: Box) -> None:
    box.fails = BrokerError("the topic is gone")
    left = taker(tmp_path, box)
    PartWriter(tmp_path / "left").append(1, [output(0)])

    def failed() -> bool:
        try:
            left.check()
        except BrokerError:
            return True
        return False

    until(failed)
    with pytest.raises(BrokerError, match="the topic is gone"):
        left.finish()


def test_what_several_steps_leave_for_one_topic_is_taken_once(tmp_path: Path, box: Box) -> None:
    """Else one would remove a part that counts while another one reads it."""
    stream, attempt = tmp_path / "stream", Attempt(tmp_path / "jobs" / "1")
    delivery = Delivery(
        "run", "stream", stream, 1, {REJECTED: cast(TopicSink, None)}, "writer", ExitStack()
    )
    delivery._outboxes[REJECTED] = cast(Outbox, box)
    write = WriteOutputs(stream / "rejected", ("n",), 1)
    with delivery.taking():
        steps = [delivery.step(REJECTED, write, attempt) for _ in range(3)]
        for number, step in enumerate(steps):
            assert isinstance(step, WriteOutputs)
            PartWriter(step.folder).append(1, [output(number)])
        until(lambda: len(box.handed) >= 3)
        delivery.take_left()
    assert sorted(name for _, _, name, _ in box.handed) == ["o-0", "o-1", "o-2"]
    assert {folder for folder, _, _, _ in box.handed} == {stream / "rejected"}
