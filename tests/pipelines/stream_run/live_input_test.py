"""The input of a live stream: what stops it, what it refuses, and how it goes on."""

from __future__ import annotations

import functools
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.support.scripted_topics import (
    ASKED,
    PAID,
    PROJECT,
    START,
    Rig,
    ScriptedTopic,
    file_rows,
    row,
)
from tests.support.waiting import wait_until
from tidemill.features.contract import HOUR, SECOND, TIME_MAX
from tidemill.features.errors import (
    BrokerError,
    InputError,
    NoSpace,
    PositionOutOfRange,
    StateMismatch,
)
from tidemill.pipelines.ingest.build_topics import BuildTopic, write_topics
from tidemill.pipelines.ingest.topics import TopicExtent
from tidemill.pipelines.io.live import follow
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_source import LiveSource, Pace
from tidemill.pipelines.io.live.poll_log import PollLog
from tidemill.pipelines.io.live.steady_clock import wall_clock_us
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.stream_run import live_input
from tidemill.pipelines.stream_run.live_input import STOP, LiveInput
from tidemill.serving.files.records import checksum_of

AS_OF = START - HOUR + 1
ENDS_AFTER_US = 1_500_000
"""A busy machine takes a while to begin to read."""


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Topics that a test scripts, in the place of a broker's."""
    rig = Rig(tmp_path, ScriptedTopic(2), ScriptedTopic(1), files=1, file_rows=3)
    write_topics(
        rig.build, {"paid": BuildTopic("paid", (0, 0)), "asked": BuildTopic("asked", (0,))}
    )

    @contextmanager
    def open_topics(
        config: Any,
        log: Log,
        unsealed: Iterable[PollPart],
        topics: Mapping[str, LiveTopic],
        offsets: Mapping[str, Sequence[int]],
        topic_ids: Mapping[str, str],
    ) -> Iterator[list[LiveSource]]:
        assert all(part.start <= part.stop for part in unsealed)
        polls = PollLog(rig.folder / "live" / "polls")
        rig.paid.seek(offsets["paid"])
        rig.asked.seek(offsets["asked"])
        yield [
            rig._source(definition, topic, polls)
            for definition, topic in ((ASKED, rig.asked), (PAID, rig.paid))
        ]

    monkeypatch.setattr(live_input, "open_topics", open_topics)
    monkeypatch.setattr(live_input, "ask_extents", lambda _: extents(rig))
    monkeypatch.setattr(
        live_input, "committing", lambda _: nullcontext(SimpleNamespace(note=lambda _: None))
    )
    monkeypatch.setattr(
        live_input, "Pace", functools.partial(Pace, partitions_s=0.0, check_s=0.0, beat_s=0.0)
    )
    monkeypatch.setattr(live_input, "PollsTaken", lambda _: lambda: 10**9)
    return rig


def extents(rig: Rig) -> dict[str, TopicExtent]:
    found = {}
    for name, topic in (("paid", rig.paid), ("asked", rig.asked)):
        ends = tuple(one.high for one in topic.ends().values())
        found[name] = TopicExtent(name, f"id-{name}", (topic.first,) * len(ends), ends)
    return found


def entrance(
    rig: Rig, until_us: int | None = None, as_of_us: int = AS_OF, every_us: int = HOUR
) -> LiveInput:
    stream = rig.folder / "stream"
    stream.mkdir(exist_ok=True)
    current = SimpleNamespace(folder=rig.folder, build_folder=rig.build, stream_folder=stream)
    start = SimpleNamespace(
        current=current,
        segment=1,
        resumes=False,
        handoff=SimpleNamespace(
            as_of_us=as_of_us, polls=0, positions={"paid": [3, 0, 0], "asked": [3, 0]}
        ),
        run=SimpleNamespace(
            mode="exact", as_of_us=AS_OF, positions={"paid": [3, 0, 0], "asked": [3, 0]}
        ),
    )
    config = SimpleNamespace(
        root=rig.folder / "root",
        project=PROJECT,
        sources={
            name: SimpleNamespace(
                kafka=SimpleNamespace(topic=name, quiet_us=SECOND, clock="wall", registry=None),
                max_rejected=1.0,
            )
            for name in ("paid", "asked")
        },
        stream=SimpleNamespace(poll_rows=100, savepoint_every_us=every_us),
        archive=None,
    )
    return LiveInput(cast(Any, config), cast(Any, start), threading.Event(), fails_to_say, until_us)


def fails_to_say(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def stop_number(rig: Rig) -> int | None:
    path = rig.folder / "stream" / STOP
    if not path.exists():
        return None
    record = json.loads(path.read_bytes())
    fields = {name: record[name] for name in ("number", "epoch")}
    assert record["checksum"] == checksum_of(fields)
    return int(record["number"])


def is_stopped(rig: Rig) -> Callable[[], bool]:
    return lambda: stop_number(rig) is not None


def fails(error: Exception) -> Callable[..., Any]:
    def raising(*_: Any) -> Any:
        raise error

    return raising


@dataclass
class Counting:
    """Savepoints that count at once.

    Attributes:
        least: The number of the first segment that may not end.
        asked: The segments that were to end.
    """

    least: int = 10**9
    asked: list[int] = field(default_factory=list)

    def may_mark(self, segment: int) -> bool:
        self.asked.append(segment)
        return segment < self.least


def run(
    given: LiveInput, while_it_reads: Callable[[], None], marks: Counting | None = None
) -> int | None:
    """Read the topics while a pipeline would run; return after which poll they stopped."""
    number: int | None = None
    with given.reading(marks or Counting()):
        while_it_reads()
        path = given.start.current.stream_folder / STOP
        if path.exists():
            number = int(json.loads(path.read_bytes())["number"])
    assert not path.exists()
    return number


def test_an_error_of_the_reader_stops_the_stream_in_order_and_is_raised(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.paid.send(row("a", START), row("b", START))
    given = entrance(rig)

    def pipeline() -> None:
        wait_until(lambda: len(rig.rows("paid")) == 2)
        assert stop_number(rig) is None
        monkeypatch.setattr(rig.asked, "poll", fails(BrokerError("the topic is gone")))
        wait_until(is_stopped(rig))
        assert stop_number(rig) == rig.logged()[-1].number

    with pytest.raises(BrokerError, match="the topic is gone"):
        run(given, pipeline)


def test_a_poll_that_cannot_be_written_down_is_not_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = entrance(rig)
    append, calls = PollLog.append, [0]

    def full(log: PollLog, entry: Any) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise NoSpace("the disk is full")
        append(log, entry)

    monkeypatch.setattr(PollLog, "append", full)

    def pipeline() -> None:
        wait_until(is_stopped(rig))
        assert stop_number(rig) == 3

    with pytest.raises(NoSpace):
        run(given, pipeline)


def test_a_disk_that_has_no_room_for_the_end_is_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_input, "_AGAIN_SECONDS", 0.01)
    write, calls, said = follow.stop_after, [0], list[str]()
    given = replace(entrance(rig, until_us=0), say=said.append)

    def full(path: Path, number: int, epoch: int) -> None:
        calls[0] += 1
        if calls[0] < 4:
            raise NoSpace("the disk is full")
        write(path, number, epoch)

    monkeypatch.setattr(live_input, "stop_after", full)
    run(given, lambda: wait_until(is_stopped(rig)))
    assert said == ["the stream cannot stop yet: the disk is full"] * 3


def test_an_error_of_the_pipeline_ends_the_reader(rig: Rig) -> None:
    given = entrance(rig)
    with pytest.raises(KeyError, match="of the pipeline"):
        run(given, fails(KeyError("of the pipeline")))
    before = len(rig.logged())
    time.sleep(0.05)
    assert len(rig.logged()) == before


def test_who_asks_stops_the_stream_after_what_was_read(rig: Rig) -> None:
    rig.paid.send(row("a", START))
    given = entrance(rig)

    def pipeline() -> None:
        wait_until(lambda: len(rig.rows("paid")) == 1)
        given.stop.set()
        wait_until(is_stopped(rig))

    number = run(given, pipeline)
    assert number == rig.logged()[-1].number
    reached = given.reached(number)
    assert reached.polls == number == given.taken().last_poll_number
    assert reached.as_of_us == (given.taken().received_us or 0) + 1
    assert reached.positions == {"paid": [3, 1, 0], "asked": [3, 0]}
    assert given.figures()["read"] == {"asked": 0, "paid": 1}
    assert given.last_segment == 1


def test_a_stream_marks_polls_and_goes_on(rig: Rig) -> None:
    """It marks one only where the savepoint before counts, and where a poll has come since."""
    given, marks = entrance(rig, every_us=SECOND // 50), Counting(least=4)

    def pipeline() -> None:
        for n in range(3):
            rig.paid.send(row(f"{n}", START))
            wait_until(lambda segment=n + 2: segment in marks.asked)
        marked = [poll for poll in polls_of(rig) if poll.is_marked]
        assert [poll.epoch for poll in marked] == [0, 1, 2]
        wait_until(lambda: marks.asked.count(4) > 3)
        given.stop.set()
        wait_until(is_stopped(rig))

    run(given, pipeline, marks)
    polls = polls_of(rig)
    assert [poll.epoch for poll in polls if poll.is_marked] == [0, 1, 2]
    assert all(two.epoch == one.next_epoch for one, two in itertools.pairwise(polls))
    assert given.last_segment == 4
    again = entrance(rig, as_of_us=given.reached(polls[-1].number).as_of_us)
    run(again, again.stop.set, marks)
    assert again.last_segment == 1


def test_what_a_savepoint_holds_is_sealed_and_the_rest_is_sent_again(rig: Rig) -> None:
    rig.paid.send(row("a", START))
    given, marks = entrance(rig, every_us=SECOND // 50), Counting(least=2)

    def pipeline() -> None:
        wait_until(lambda: 2 in marks.asked)
        rig.paid.send(row("b", START))
        wait_until(lambda: len(rig.rows("paid")) == 2)

    run(given, pipeline, marks)
    (marked,) = (poll for poll in polls_of(rig) if poll.is_marked)
    reached = given.reached(marked.number)
    assert reached.positions == {"paid": [3, 1, 0], "asked": [3, 0]}
    assert given.live.sealed().number == marked.number
    again = entrance(rig, as_of_us=reached.as_of_us)
    assert again._epoch == 1
    assert again.begins.rows == 0


def test_what_a_killed_run_has_not_kept_is_kept_as_soon_as_it_is_repeated(rig: Rig) -> None:
    """However often a stream is killed before `savepoint_every` has passed."""
    rig.paid.send(row("a", START))
    killed, marks = entrance(rig, every_us=HOUR), Counting(least=2)

    def pipeline() -> None:
        wait_until(lambda: len(rig.rows("paid")) == 1)

    run(killed, pipeline, marks)
    assert not any(poll.is_marked for poll in polls_of(rig))
    unsaved = len(rig.logged())
    rig.paid.send(row("b", START))
    assert marks.asked == []
    again = entrance(rig, every_us=HOUR)
    run(again, lambda: wait_until(lambda: len(rig.logged()) > unsaved + 1), marks)
    assert marks.asked == [1]
    marked = [number for number, poll in enumerate(polls_of(rig)) if poll.is_marked]
    assert marked == [unsaved]


def polls_of(rig: Rig) -> list[Poll]:
    return [Poll.decode(bytes(one.poll)) for one in rig.logged()]


def test_another_bundle_scores_what_is_not_written_down_yet(rig: Rig) -> None:
    """What a killed run has read may be scored already, and is repeated as it was."""
    assert entrance(rig).scored_from == (3, 0)
    rig.asked.send(row("q", START), row("r", START))
    run(entrance(rig), lambda: wait_until(lambda: len(rig.rows("asked")) == 2))
    assert entrance(rig).scored_from == (3, 2)
    given = entrance(rig)
    rig.asked.send(row("s", START))
    assert given.scored_from == (3, 2)


def test_a_stream_goes_on_from_its_savepoint(rig: Rig) -> None:
    rig.paid.send(row("a", START))
    first = entrance(rig, until_us=wall_clock_us() + ENDS_AFTER_US)
    number = run(first, lambda: wait_until(is_stopped(rig)))
    assert number is not None
    as_of_us = first.reached(number).as_of_us
    rig.paid.send(row("b", START))
    again = entrance(rig, until_us=wall_clock_us() + ENDS_AFTER_US, as_of_us=as_of_us)
    assert again.begins.before == number
    assert again.begins.last_poll_number == 0
    more = run(again, lambda: wait_until(is_stopped(rig)))
    assert more is not None
    again.live.seal(rig.build)
    assert again.taken().rows == 1
    found = rig.log.read("paid", 1).to_pydict()
    assert found["id"] == ["a", "b"]
    assert found["_received"][1] >= as_of_us


def test_rows_are_received_after_what_the_states_hold(rig: Rig) -> None:
    """Also where the machine's clock is behind the end of the files."""
    as_of_us = wall_clock_us() + 24 * HOUR
    rig.paid.send(row("a", START))
    given = entrance(rig, until_us=wall_clock_us() + ENDS_AFTER_US, as_of_us=as_of_us)
    run(given, lambda: wait_until(is_stopped(rig)))
    given.live.seal(rig.build)
    polls = given.taken()
    assert polls.before == 0
    assert polls.rows == 1
    assert polls.last_poll_number == rig.logged()[-1].number


def test_no_more_polls_are_read_than_the_operators_can_take(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = [0]
    monkeypatch.setattr(live_input, "HERE", live_input.Ahead(5, 0.0))
    monkeypatch.setattr(live_input, "PollsTaken", lambda _: lambda: taken[0])
    given = entrance(rig)

    def pipeline() -> None:
        wait_until(lambda: len(rig.logged()) == 5)
        time.sleep(0.1)
        assert len(rig.logged()) == 5
        taken[0] = 3
        wait_until(lambda: len(rig.logged()) == 8)
        given.stop.set()
        wait_until(is_stopped(rig))

    assert run(given, pipeline) == 8


# --- partitions ------------------------------------------------------------------------------


def read_of(rig: Rig, name: str, partition: int) -> Callable[[], bool]:
    """Return whether a partition's first message is read."""

    def is_read() -> bool:
        logged = rig.logged()
        offsets = logged[-1].offsets[name] if logged else ()
        return len(offsets) > partition and offsets[partition] == 1

    return is_read


def test_a_topic_that_has_grown_since_the_backfill_is_read_whole(rig: Rig) -> None:
    rig.paid.grow(4)
    rig.paid.send(row("a", START), partition=3)
    given = replace(entrance(rig), say=rig.said.append)
    run(given, lambda: wait_until(read_of(rig, "paid", 3)))
    assert [one["id"] for one in rig.rows("paid")] == ["a"]
    assert {part.partition for part in rig.polls()[-1].parts if part.source == "paid"} == {0, 1, 2}


def test_a_topic_that_grows_while_it_is_read_is_read_whole(rig: Rig) -> None:
    given = replace(entrance(rig), say=rig.said.append)

    def pipeline() -> None:
        wait_until(lambda: len(rig.logged()) > 2)
        rig.asked.send(row("q", START))
        rig.asked.grow(3)
        rig.asked.send(row("p", START), partition=2)
        wait_until(read_of(rig, "asked", 2))

    run(given, pipeline)
    assert sorted(one["id"] for one in rig.rows("asked")) == ["p", "q"]
    assert ["3 partitions now, 1 before" in one for one in rig.said] == [True]
    # Another stream goes on with all of them.
    rig.asked.send(row("r", START), partition=2)
    again = replace(entrance(rig), say=fails_to_say)
    run(again, lambda: wait_until(lambda: rig.logged()[-1].offsets["asked"] == (1, 0, 2)))
    assert sorted(one["id"] for one in rig.rows("asked")) == ["p", "q", "r"]


def test_messages_that_a_new_partition_has_lost_are_not_passed_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.paid.grow(3)
    found = extents(rig)
    found["paid"] = found["paid"]._replace(first=(0, 0, 4), ends=(0, 0, 4))
    monkeypatch.setattr(live_input, "ask_extents", lambda _: found)
    said: list[str] = []
    with pytest.raises(PositionOutOfRange, match=r"up to 4 messages of 'paid' partition 2"):
        replace(entrance(rig), say=said.append).find_lost()
    assert "(--accept-lost paid/2@0-3)" in said[0]
    accepting = replace(entrance(rig), say=said.append, accept_lost=["paid/2@0-3"])
    (loss,) = accepting.find_lost()
    assert (loss.partition, loss.start, loss.stop) == (2, 0, 4)


@pytest.mark.parametrize(
    "built", [{}, {"paid": BuildTopic("other", (0, 0)), "asked": BuildTopic("asked", (0,))}]
)
def test_states_of_other_topics_are_refused(rig: Rig, built: dict[str, BuildTopic]) -> None:
    write_topics(rig.build, built)
    with pytest.raises(StateMismatch, match=r"were not made for topic .*run `tidemill backfill`"):
        entrance(rig)


def test_other_partitions_than_at_the_beginning_are_refused(rig: Rig) -> None:
    write_topics(rig.build, {"paid": BuildTopic("paid", (0,)), "asked": BuildTopic("asked", (0,))})
    with pytest.raises(StateMismatch, match="begun with topic 'paid' of 2 partitions"):
        entrance(rig)


# --- files -----------------------------------------------------------------------------------


def test_rows_of_files_that_neither_states_nor_topics_bring_are_refused(rig: Rig) -> None:
    entrance(rig)
    rows = file_rows(PAID, 5)
    rig.log.write(PAID, 0, rows, np.full(5, START - HOUR))
    with pytest.raises(InputError, match=r"2 rows of the files of 'paid' .*evaluate_until"):
        entrance(rig)


def test_live_rows_are_not_taken_for_rows_of_files(rig: Rig) -> None:
    for partition in (0, 1):
        rig.paid.send(*(row(f"{n}", START) for n in range(9)), partition=partition)
    given = entrance(rig, until_us=wall_clock_us() + ENDS_AFTER_US)
    number = run(given, lambda: wait_until(is_stopped(rig)))
    assert number is not None
    reached = given.reached(number)
    assert rig.log.lengths("paid") == [3, 9, 9]
    again = entrance(rig)  # a new stream, from the same states
    assert again.begins.rows == 18
    assert again.live.sealed().number == given.begins.start.number + again.begins.last_poll_number
    assert again.begins.stop[:3] == (3, 9, 9)
    assert reached.as_of_us < TIME_MAX


def test_what_a_poll_has_is_not_lost_whatever_the_topic_has_deleted_since(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.paid.send(row("a", START), row("b", START))
    rig.step(1)
    live = entrance(rig)
    assert live.live.sealed().number == 0  # no savepoint has it
    found = extents(rig)
    found["paid"] = found["paid"]._replace(first=(2, 0))
    monkeypatch.setattr(live_input, "ask_extents", lambda _: found)
    assert live.find_lost() == []
    found["paid"] = found["paid"]._replace(first=(3, 0), ends=(3, 0))
    live.accept_lost = ["paid/0@2-2"]
    assert [loss.option for loss in live.find_lost()] == ["paid/0@2-2"]
