"""Joining the parts of answers: in any order, each once, and nothing is filled in."""

from __future__ import annotations

import random
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    PlainStream,
    Row,
    arrivals,
    elements_of,
    end_of,
    expected_vectors,
    random_polls,
    random_rows,
    unanswered_ids,
    vectors_of,
)
from tidemill.features.contract import MINUTE
from tidemill.features.errors import BatchConflict
from tidemill.features.kernel.prepare import matrix_of, nulls_of
from tidemill.pipelines.io.log import PARTITION, POSITION, SENT
from tidemill.pipelines.stream.answer_join import RELEASE, AnswerJoiner, answered_schema
from tidemill.pipelines.stream.answer_parts import AnswerPart, RequestPart, group_of, partition_of
from tidemill.pipelines.stream.shard import request_parts
from tidemill.pipelines.stream.wire_format import decode_part, encode_part

SHARDS = 2
Part = RequestPart | AnswerPart


def parts_of(seed: int, polls: int = 8) -> tuple[dict[str, list[Row]], list[Part]]:
    """All parts of a small run, in the order in which a well-behaved engine brings them."""
    chance = random.Random(seed)
    rows = random_rows(seed, trips=40, hails=20)
    arrived = arrivals(PROJECT, rows, PARTITIONS, chance)
    stream = PlainStream(PROJECT, SHARDS, PARTITIONS)
    parts: list[Part] = []
    for poll in random_polls(PROJECT, arrived, end_of(rows) + MINUTE, polls, chance):
        parts += request_parts(PROJECT, poll)
        parts += stream.operate(elements_of(PROJECT, SHARDS, [poll]))
    return rows, parts


def joiner(answer_within_us: int = 2**61, gap_releases: int = 1_000) -> AnswerJoiner:
    return AnswerJoiner(PROJECT, SHARDS, answer_within_us, gap_releases)


def places_of(answered: list[pa.RecordBatch]) -> list[list[tuple[int, int]]]:
    """Return the places of the requests of each batch, in an order of their own."""
    columns = (PARTITION, POSITION)
    return sorted(
        [*zip(*(batch.column(name).to_pylist() for name in columns), strict=True)]
        for batch in answered
    )


def is_answer_of(part: Part, view: str) -> bool:
    return (
        isinstance(part, AnswerPart)
        and part.view == view
        and part.answers is not None
        and part.answers.num_rows > 0
    )


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_parts_may_come_in_any_order_and_in_any_bundles(
    seed: int, bundle: int, restart: bool, chance: random.Random
) -> None:
    """No request is answered twice, given up or missing, though releases overtake each other.

    What is answered together, and so scored together, is the same.
    """
    rows, parts = parts_of(seed)
    in_order, _ = joiner().receive(parts)
    chance.shuffle(parts)
    joining = joiner(answer_within_us=0)
    answered = []
    for first in range(0, len(parts), bundle):
        if restart:
            state = joining.state()
            joining = joiner(answer_within_us=0)
            joining.restore(state)
        done, given_up = joining.receive(parts[first : first + bundle])
        assert not given_up
        answered += done
    assert vectors_of(PROJECT, answered) == expected_vectors(PROJECT, rows)
    assert places_of(answered) == places_of(in_order)
    assert not joining.pending
    assert not joining.early
    assert not joining.drain()


def test_a_request_waits_for_no_other_one_of_its_poll() -> None:
    """It is answered with the release that completes it, though others of its poll wait on."""
    of_many = 0
    for seed in range(12):
        _, parts = parts_of(seed)
        sizes = {part.group: part.rows.num_rows for part in parts if isinstance(part, RequestPart)}
        joining, answered = joiner(), 0
        for part in parts:
            done, _ = joining.receive([part])
            for batch in done:
                last = matrix_of(batch.column(RELEASE)).max(axis=1)
                assert (last == last[0]).all()
                answered += batch.num_rows
            of_many += sum(
                pending.rows.num_rows < sizes[group] for group, pending in joining.pending.items()
            )
            reached = joining.numbers.min()
            for pending in joining.pending.values():
                is_complete = (pending.shard != -1).all(axis=1)
                assert (pending.release[is_complete].max(axis=1) > reached).all()
        assert answered == sum(sizes.values())
    assert of_many > 50


def test_a_stream_that_was_begun_so_answers_the_requests_of_a_poll_together() -> None:
    rows, parts = parts_of(3)
    joining = AnswerJoiner(PROJECT, SHARDS, 0, apart=False)
    answered: list[pa.RecordBatch] = []
    for part in parts:
        done, given_up = joining.receive([part])
        assert not given_up
        answered += done
    polls = [part.rows.num_rows for part in parts if isinstance(part, RequestPart)]
    assert sorted(batch.num_rows for batch in answered) == sorted(polls)
    assert vectors_of(PROJECT, answered) == expected_vectors(PROJECT, rows)


def test_a_repeat_of_requests_of_which_some_were_answered_is_known_by_the_others() -> None:
    for seed in range(12):
        _, parts = parts_of(seed)
        asked = {part.group: part for part in parts if isinstance(part, RequestPart)}
        joining = joiner()
        for part in parts:
            joining.receive([part])
            for group, pending in joining.pending.items():
                if pending.rows.num_rows < asked[group].rows.num_rows:
                    again = joiner()
                    again.restore(joining.state())
                    assert again.receive([asked[group]]) == ([], [])
                    assert again.pending[group].rows.equals(pending.rows)
                    missing = asked[group].rows.slice(0, pending.rows.num_rows - 1)
                    with pytest.raises(BatchConflict, match="came twice"):
                        again.receive([RequestPart(group, missing)])
                    return
    raise AssertionError("no poll was answered in parts")


def mentions(part: AnswerPart, group: int) -> bool:
    return part.answers is not None and group in part.answers.column("group").to_pylist()


def test_requests_that_are_given_up_take_no_other_one_along() -> None:
    """A request of an hour later in the same poll is answered when its time has come."""
    _, parts = parts_of(5)
    polls = [part for part in parts if isinstance(part, RequestPart) and part.rows.num_rows > 2]
    chosen = polls[0]
    times = chosen.rows.column("at").cast(pa.int64()).to_pylist()
    late_us = max(time for time in times if time < max(times))
    joining = joiner(answer_within_us=1)
    joining.receive([chosen])
    joining.frontiers[:] = late_us + 2
    _, given_up = joining.receive([])
    assert [part.rows.num_rows for part in given_up] == [len(times) - 1]
    assert given_up[0].views == ("cab", "zone", "weather")
    assert joining.pending[chosen.group].rows.column("at").cast(pa.int64()).to_pylist() == [
        max(times)
    ]
    # Also behind a restart their answers are no others' business.
    again = joiner(answer_within_us=1)
    again.restore(joining.state())
    for one in (joining, again):
        one.frontiers[:] = late_us + 2
        answered, given_up = one.receive(
            part for part in parts if isinstance(part, AnswerPart) and mentions(part, chosen.group)
        )
        assert (sum(batch.num_rows for batch in answered), given_up) == (1, [])
        assert not one.pending


def test_an_answered_batch_has_the_requests_as_they_came() -> None:
    _, parts = parts_of(1)
    answered, _ = joiner().receive(parts)
    asked = {
        (partition_of(part.group), row[POSITION]): row
        for part in parts
        if isinstance(part, RequestPart)
        for row in part.rows.to_pylist()
    }
    seen = []
    for batch in answered:
        assert batch.schema.names == answered_schema(PROJECT)
        positions = batch.column(POSITION).to_pylist()
        assert positions == sorted(positions)
        for row in batch.to_pylist():
            place = row[PARTITION], row[POSITION]
            assert asked[place] == {name: row[name] for name in asked[place]}
            seen.append(place)
    assert sorted(seen) == sorted(asked)


def test_requests_that_the_engine_repeats_are_answered_once() -> None:
    """While they wait, and after they were answered; the time of reading may differ."""
    rows, parts = parts_of(2)
    again: list[Part] = []
    for part in parts:
        again.append(part)
        if isinstance(part, RequestPart):
            at = part.rows.schema.get_field_index(SENT)
            later = pa.array([77] * part.rows.num_rows, pa.int64())
            again.append(RequestPart(part.group, part.rows.set_column(at, SENT, later)))
    again += [part for part in parts if isinstance(part, RequestPart)]
    joining = joiner(answer_within_us=0)
    answered = []
    for part in again:
        done, given_up = joining.receive([part])
        answered += done
        assert not given_up
    assert vectors_of(PROJECT, answered) == expected_vectors(PROJECT, rows)
    assert not joining.pending


def test_requests_that_come_twice_with_other_rows_are_a_conflict() -> None:
    _, parts = parts_of(3)
    part = next(p for p in parts if isinstance(p, RequestPart) and p.rows.num_rows > 1)
    joining = joiner()
    joining.receive([part])
    with pytest.raises(BatchConflict, match="came twice with different rows"):
        joining.receive([RequestPart(part.group, part.rows.slice(1))])


@pytest.mark.parametrize("closed", [False, True])
def test_a_request_that_two_releases_answer_is_refused(closed: bool) -> None:
    _, parts = parts_of(4)
    again = next(part for part in parts if is_answer_of(part, "zone"))
    joining = joiner()
    if closed:
        joining.receive(parts)
    else:
        joining.receive([p for p in parts if isinstance(p, RequestPart)])
        joining.receive([again])
    assert isinstance(again, AnswerPart)
    with pytest.raises(BatchConflict, match="view 'zone' answered a request of group"):
        joining.receive([replace(again, number=1_000)])


def test_releases_that_the_engine_repeats_are_joined_once() -> None:
    """In one bundle, while others wait, and after their requests were answered."""
    rows, parts = parts_of(4)
    joining = joiner(answer_within_us=0)
    answered = []
    for first in range(0, len(parts), 5):
        done, given_up = joining.receive(parts[max(first - 7, 0) : first + 5] * 2)
        answered += done
        assert not given_up
    assert joining.receive(parts) == ([], [])
    assert vectors_of(PROJECT, answered) == expected_vectors(PROJECT, rows)


def test_a_missing_part_is_given_up_when_its_view_has_passed_it() -> None:
    """Here the part came, but without its answers: the view is named, nothing is filled in."""
    rows, parts = parts_of(5)
    lost = next(index for index, part in enumerate(parts) if is_answer_of(part, "weather"))
    part = parts[lost]
    assert isinstance(part, AnswerPart)
    parts[lost] = replace(part, answers=None)
    joining = joiner(answer_within_us=0)
    answered, given_up = [], []
    for each in parts:
        done, lost_now = joining.receive([each])
        answered += done
        given_up += lost_now
    assert given_up
    assert {views for unanswered in given_up for views in unanswered.views} == {"weather"}
    names = [name for unanswered in given_up for name in unanswered_ids(unanswered.rows)]
    found = vectors_of(PROJECT, answered)
    assert sorted([*names, *found]) == sorted(row["hail"] for row in rows["hails"])
    expected = expected_vectors(PROJECT, rows)
    assert found == {name: expected[name] for name in found}
    assert {unanswered.partition for unanswered in given_up} <= {0, 1}


def test_a_request_is_not_given_up_before_answer_within() -> None:
    rows, parts = parts_of(5)
    parts = [part for part in parts if not is_answer_of(part, "weather")]
    last = max(row["at"] for row in rows["hails"])
    patient = joiner(answer_within_us=end_of(rows) + 2 * MINUTE - last)
    assert patient.receive(parts)[1] == []


def test_a_release_that_overtakes_another_gives_nothing_up() -> None:
    """The answers of the earlier release are still on their way."""
    _, parts = parts_of(6)
    of_weather = [p for p in parts if isinstance(p, AnswerPart) and p.view == "weather"]
    first = {shard: next(p for p in of_weather if p.shard == shard) for shard in range(SHARDS)}
    assert any(is_answer_of(p, "weather") for p in of_weather)
    joining = joiner(answer_within_us=0)
    others = [part for part in parts if all(part is not p for p in first.values())]
    answered, given_up = joining.receive(others)
    assert given_up == []
    more, given_up = joining.receive(first.values())
    assert given_up == []
    assert not joining.pending
    assert answered or more


def test_a_missing_release_counts_as_lost_when_enough_later_ones_wait() -> None:
    _, parts = parts_of(7, polls=30)
    lost = next(part for part in parts if is_answer_of(part, "cab"))
    assert isinstance(lost, AnswerPart)
    later = [
        p
        for p in parts
        if isinstance(p, AnswerPart)
        and (p.view, p.shard) == ("cab", lost.shard)
        and p.number > lost.number
    ]
    assert len(later) > 3
    rest = [part for part in parts if part is not lost]
    patient, hasty = joiner(0, gap_releases=len(later)), joiner(0, gap_releases=2)
    assert patient.receive(rest)[1] == []
    assert patient.pending
    given_up = hasty.receive(rest)[1]
    assert given_up
    assert {view for unanswered in given_up for view in unanswered.views} == {"cab"}


def test_an_answer_after_its_request_was_given_up_is_dropped() -> None:
    _, parts = parts_of(8)
    late = next(part for part in parts if is_answer_of(part, "cab"))
    assert isinstance(late, AnswerPart)
    empty = replace(late, answers=None)
    joining = joiner(answer_within_us=0)
    _, given_up = joining.receive([empty if part is late else part for part in parts])
    assert given_up
    assert joining.receive([late]) == ([], [])
    assert not joining.early


def test_a_drain_gives_up_all_that_waits_and_names_the_views() -> None:
    rows, parts = parts_of(9)
    joining = joiner()
    answered, _ = joining.receive(
        [
            part
            for part in parts
            if not is_answer_of(part, "cab") and not is_answer_of(part, "weather")
        ]
    )
    assert answered == []
    drained = joining.drain()
    assert {part.views for part in drained} == {("cab", "weather")}
    names = [name for part in drained for name in unanswered_ids(part.rows)]
    assert sorted(names) == sorted(row["hail"] for row in rows["hails"])
    assert joining.drain() == []


def test_parts_travel_as_bytes() -> None:
    _, parts = parts_of(10)
    for part in parts:
        again = decode_part(encode_part(part))
        assert type(again) is type(part)
        if isinstance(part, RequestPart):
            assert isinstance(again, RequestPart)
            assert again.group == part.group
            assert again.rows.equals(part.rows)
        else:
            assert isinstance(again, AnswerPart)
            assert again.frontier_us == part.frontier_us
            if part.answers is None or part.answers.num_rows == 0:
                assert again.answers is None
            else:
                assert again.answers is not None
                assert again.answers.equals(part.answers)


def test_a_group_names_its_partition() -> None:
    assert partition_of(group_of(3, 123_456_789_012)) == 3
    assert group_of(0, 17) == 17
    assert group_of(1, 0) != group_of(0, 1)


def test_null_flags_of_a_slice_are_its_own() -> None:
    flags = pa.array([b"\0\1", b"\1\0", b"\1\1"], pa.binary(2))
    assert nulls_of(flags.slice(1, 2)).tolist() == [[1, 0], [1, 1]]
    assert nulls_of(flags.slice(0, 0)).shape == (0, 2)
