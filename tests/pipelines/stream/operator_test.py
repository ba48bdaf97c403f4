"""The operator of one (view, shard): golden transcripts of batches in, releases out.

The language is that of `tests.support.transcript`; the view counts clicks, and sums their
numbers, over 20 us with a hop of 10 us.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.frames import of_version
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    PlainStream,
    arrivals,
    elements_of,
    end_of,
    random_polls,
    random_rows,
)
from tests.support.transcript import Player, make_operator, parse, play
from tidemill.features.contract import TIME_MIN
from tidemill.features.errors import (
    BatchConflict,
    PartitionGap,
    SequenceError,
    StateMismatch,
    StateVersionError,
)
from tidemill.features.kernel.advance import Publish
from tidemill.features.kernel.encoding import encode
from tidemill.pipelines.io.framing import VERSIONS, Kind
from tidemill.pipelines.stream.marks import first_mark, next_mark
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import Mode, OperatorKey
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.savepoint_files import SavepointFiles
from tidemill.pipelines.stream.sequence import SequencedBatch, decode_batches
from tidemill.pipelines.stream.state_files import read_handoff


def test_rows_are_released_when_the_frontier_has_passed_them() -> None:
    assert play(
        make_operator(),
        """
        1 events 0 [0,2) <10: a@3=1 b@5=2
        1 requests 0 [0,1) <9: a@8

        2 events 0 [2,3) <25: a@12=4
        2 requests 0 [1,4) <25: a@12 a@13 b@20

        3 events 0 [3,3) <60
        3 requests 0 [4,4) <60
        """,
    ) == [
        (
            "1: frontier 9; a@8 is 1 sum 1; "
            "a from 4 to 30 revision 1 is 1 sum 1; b from 6 to 30 revision 1 is 1 sum 2"
        ),
        (
            "2: frontier 25; a@12 is 1 sum 1; a@13 is 2 sum 5; b@20 is 1 sum 2; "
            "a from 13 to 30 revision 2 is 2 sum 5"
        ),
        (
            "3: frontier 60; b from 30 to ever revision 1 is 0 sum 0; "
            "a from 40 to ever revision 2 is 0 sum 0"
        ),
    ]


def test_publishing_every_entity_counts_no_overflow_again() -> None:
    """A repair of the store is seen in no release: a proof repeats the log, and not the repairs."""
    most = 2**62
    operator = make_operator()
    play(
        operator,
        f"""
        1 events 0 [0,2) <10: a@3={most} a@5={most}
        1 requests 0 [0,0) <10
        """,
    )
    counted = dataclasses.replace(operator.state.counters)
    assert counted.overflows == 1
    assert operator.everything().num_rows == 1
    assert operator.state.counters == counted


def test_the_row_at_the_watermark_waits() -> None:
    assert play(
        make_operator(),
        """
        1 events 0 [0,1) <10: a@10=1
        1 requests 0 [0,1) <10: a@10

        2 events 0 [1,1) <12
        2 requests 0 [1,2) <12: a@11
        """,
    ) == [
        "1: frontier 10",
        "2: frontier 12; a@10 is 0 sum 0; a@11 is 1 sum 1; a from 11 to 40 revision 1 is 1 sum 1",
    ]


def test_each_poll_gives_a_release_however_they_come() -> None:
    """Several polls in one bundle give several releases; so a bundle decides nothing."""
    one_by_one = """
        1 events 0 [0,2) <10: a@3=1 b@5=2
        1 requests 0 [0,1) <9: a@8

        2 events 0 [2,3) <25: a@12=4
        2 requests 0 [1,2) <25: a@13

        3 events 0 [3,3) <25
        3 requests 0 [2,2) <25
        """
    at_once = one_by_one.replace("\n\n", "\n")
    expected = play(make_operator(), one_by_one)
    assert [line.split(";")[0] for line in expected] == [
        "1: frontier 9",
        "2: frontier 25",
        "3: frontier 25",
    ]
    assert play(make_operator(), at_once) == expected


def test_a_poll_that_moves_nothing_gives_an_empty_release() -> None:
    """So a missing number is always a lost release."""
    operator = make_operator()
    play(operator, "1 events 0 [0,1) <10: a@3=1\n1 requests 0 [0,0) <10")
    (empty,) = operator.receive([parse("2 events 0 [1,1) <10"), parse("2 requests 0 [0,0) <10")])
    assert (empty.number, empty.frontier_us, empty.events, empty.entry) == (2, 10, 0, None)
    assert empty.answers.num_rows == empty.publications.num_rows == 0
    (full,) = operator.receive(
        [parse("3 events 0 [1,2) <20: a@12=1"), parse("3 requests 0 [0,1) <20: a@11")]
    )
    assert empty.answers.schema == full.answers.schema
    assert empty.publications.schema == full.publications.schema


def test_an_early_poll_waits_for_the_one_before_it() -> None:
    operator = make_operator()
    assert play(
        operator,
        """
        2 events 0 [2,3) <25: a@12=4
        1 requests 0 [0,0) <10
        2 requests 0 [0,1) <25: a@13

        1 events 0 [0,2) <10: a@3=1 b@5=2
        """,
    ) == [
        "nothing",
        (
            "1: frontier 10; "
            "a from 4 to 30 revision 1 is 1 sum 1; b from 6 to 30 revision 1 is 1 sum 2"
        ),
        "2: frontier 25; a@13 is 2 sum 5; a from 13 to 30 revision 2 is 2 sum 5",
    ]
    assert operator.counters.early == 2


def test_repeats_are_dropped() -> None:
    operator = make_operator()
    assert play(
        operator,
        """
        1 events 0 [0,2) <10: a@3=1 b@5=2
        1 events 0 [0,2) <10: a@3=1 b@5=2
        1 requests 0 [0,0) <10

        1 events 0 [0,2) <10: a@3=1 b@5=2

        1 requests 0 [0,0) <10
        2 events 0 [2,3) <12: a@11=4
        2 requests 0 [0,1) <12: a@11
        """,
    ) == [
        (
            "1: frontier 10; "
            "a from 4 to 30 revision 1 is 1 sum 1; b from 6 to 30 revision 1 is 1 sum 2"
        ),
        "nothing",
        "2: frontier 12; a@11 is 1 sum 1; a from 12 to 30 revision 2 is 2 sum 5",
    ]
    assert (operator.counters.repeats, operator.counters.events) == (3, 3)
    # The row was dropped by its poll, so it does not count as a duplicate.
    assert operator.counters.duplicates == 0


def test_a_poll_that_begins_elsewhere_than_its_predecessor_ended_is_refused() -> None:
    """The source has cut its log otherwise than before: rows would be lost or doubled."""
    for start in (1, 3):
        operator = make_operator()
        play(operator, "1 events 0 [0,2) <10: a@3=1 b@5=2\n1 requests 0 [0,0) <10")
        with pytest.raises(BatchConflict, match=f"poll 2 has positions {start} to 4 .* from 2;"):
            operator.receive(
                [parse(f"2 events 0 [{start},4) <12: a@11=4"), parse("2 requests 0 [0,0) <12")]
            )


def test_an_empty_batch_moves_the_watermark() -> None:
    assert play(
        make_operator(),
        """
        1 events 0 [0,0) <10
        1 requests 0 [0,0) <5

        2 events 0 [0,0) <10
        2 requests 0 [0,0) <10

        3 events 0 [0,0) <11
        """,
    ) == ["1: frontier 5", "2: frontier 10", "nothing"]


def test_an_older_watermark_never_takes_the_frontier_back() -> None:
    operator = make_operator()
    assert play(
        operator,
        """
        1 events 0 [0,0) <20
        1 requests 0 [0,0) <20

        2 events 0 [0,1) <12: a@15=1
        2 requests 0 [0,1) <30: a@25
        """,
    ) == ["1: frontier 20", "2: frontier 20"]
    assert operator.watermarks == [20, 30]


def test_a_gap_that_stays_open_fails_and_names_poll_and_positions() -> None:
    operator = make_operator(2, gap_batches=2)
    play(
        operator,
        """
        1 events 0 [0,0) <5
        1 events 1 [0,3) <5: a@1=1 a@2=1 a@3=1
        1 requests 0 [0,0) <5

        2 events 0 [0,0) <9

        3 events 1 [7,8) <9: a@8=1

        4 events 1 [8,9) <10: a@9=1
        """,
    )
    missing = r"poll 2 never came for event partition 1 from position 3, request partition 0 from p"
    with pytest.raises(PartitionGap, match=missing):
        operator.receive([parse("5 events 1 [9,10) <11: a@10=1")])


def test_polls_that_wait_behind_a_gap_that_closes_are_forgiven() -> None:
    operator = make_operator(request_partitions=0, gap_batches=2)
    for start in range(0, 40, 4):
        for at in (start + 2, start + 3, start, start + 1):
            operator.receive([parse(f"{at + 1} events 0 [{at},{at + 1}) <{at}: a@{at}=1")])
    assert operator.expected == [40]


@pytest.mark.parametrize(
    "other", ["[1,2) <20: a@12=5", "[1,2) <20", "[1,2) <21: a@12=4", "[1,3) <20"]
)
def test_two_batches_that_claim_one_place_and_differ_are_a_conflict(other: str) -> None:
    operator = make_operator()
    operator.receive([parse("2 events 0 [1,2) <20: a@12=4")])
    with pytest.raises(BatchConflict, match=r"claim event partition 0 of poll 2: positions 1 to 2"):
        operator.receive([parse(f"2 events 0 {other}")])


def test_a_partition_that_has_not_reported_holds_the_poll() -> None:
    assert play(
        make_operator(2, 2),
        """
        1 events 0 [0,1) <10: a@3=1
        1 requests 0 [0,1) <10: a@4

        1 events 1 [0,0) <10

        1 requests 1 [0,0) <8
        """,
    ) == [
        "nothing",
        "nothing",
        "1: frontier 8; a@4 is 1 sum 1; a from 4 to 30 revision 1 is 1 sum 1",
    ]


def test_the_slowest_partition_is_the_frontier() -> None:
    operator = make_operator(2)
    assert play(
        operator,
        """
        1 events 0 [0,1) <100: a@3=1
        1 events 1 [0,1) <7: a@5=2
        1 requests 0 [0,1) <50: a@20

        2 events 0 [1,1) <100
        2 events 1 [1,1) <21
        2 requests 0 [1,1) <50
        """,
    ) == [
        "1: frontier 7; a from 6 to 30 revision 2 is 2 sum 3",
        "2: frontier 21; a@20 is 2 sum 3",
    ]


def test_an_unknown_partition_is_refused() -> None:
    operator = make_operator(2)
    with pytest.raises(SequenceError, match="event partition 2 came, but there are 2 event part"):
        operator.receive([parse("1 events 2 [0,0) <10")])
    with pytest.raises(SequenceError, match="request partition 1 came"):
        operator.receive([parse("1 requests 1 [0,0) <10")])


def test_a_late_event_counts_for_later_answers_and_holds_from_the_frontier() -> None:
    operator = make_operator()
    assert play(
        operator,
        """
        1 events 0 [0,1) <10: a@3=1
        1 requests 0 [0,1) <10: a@9

        2 events 0 [1,2) <10: a@4=8
        2 requests 0 [1,1) <10

        3 events 0 [2,2) <12
        3 requests 0 [1,2) <12: a@10
        """,
    ) == [
        "1: frontier 10; a@9 is 1 sum 1; a from 4 to 30 revision 1 is 1 sum 1",
        "2: frontier 10",
        "3: frontier 12; a@10 is 2 sum 9; a from 10 to 30 revision 2 is 2 sum 9",
    ]
    assert (operator.counters.late, operator.state.counters.late) == (1, 1)


def test_a_late_event_corrects_a_publication_at_the_same_instant() -> None:
    """The second publication has the same event_timestamp and a higher revision."""
    assert play(
        make_operator(),
        """
        1 events 0 [0,1) <10: a@9=1
        1 requests 0 [0,0) <10

        2 events 0 [1,2) <11: a@4=8
        2 requests 0 [0,0) <11
        """,
    ) == [
        "1: frontier 10; a from 10 to 30 revision 1 is 1 sum 1",
        "2: frontier 11; a from 10 to 30 revision 2 is 2 sum 9",
    ]


def test_a_late_request_is_answered_as_of_the_frontier() -> None:
    operator = make_operator()
    assert play(
        operator,
        """
        1 events 0 [0,2) <10: a@3=1 a@8=2
        1 requests 0 [0,0) <10

        2 events 0 [2,2) <11
        2 requests 0 [0,2) <11: a@5 a@10
        """,
    ) == [
        "1: frontier 10; a from 9 to 30 revision 2 is 2 sum 3",
        "2: frontier 11; a@5 as of 10 is 2 sum 3; a@10 is 2 sum 3",
    ]
    assert operator.counters.late_requests == 1


def test_equal_rows_count_once_and_other_rows_with_their_id_count_too() -> None:
    operator = make_operator(2)
    assert play(
        operator,
        """
        1 events 0 [0,3) <9: a@3=1#x a@3=1#x a@3=7#x
        1 events 1 [0,2) <9: a@3=1#x b@4=1#x
        1 requests 0 [0,1) <9: a@8
        """,
    ) == [
        (
            "1: frontier 9; a@8 is 2 sum 8; "
            "a from 4 to 30 revision 2 is 2 sum 8; b from 5 to 30 revision 1 is 1 sum 1"
        )
    ]
    counters = operator.counters
    assert (counters.events, counters.duplicates) == (5, 2)


def test_the_counters_begin_anew_where_a_stream_begins() -> None:
    operator = make_operator()
    play(
        operator,
        """
        1 events 0 [0,3) <9: a@3=1#x a@3=1#x a@4=7#y
        1 requests 0 [0,0) <9
        """,
    )
    assert operator.counters.duplicates == 1
    assert operator.state.counters.events == 2
    operator.begin()
    (release,) = operator.receive(
        [parse("1 events 0 [3,4) <20: a@4=7#y"), parse("1 requests 0 [0,0) <20")]
    )
    assert (release.seen["events"], release.seen["duplicates"]) == (1, 1)
    assert release.kernel["events"] == 0


def test_a_duplicate_is_known_as_long_as_its_stream_may_accept_it_again() -> None:
    """Also after the row has left the kernel's windows, and after a restart."""
    operator = make_operator()
    play(
        operator,
        """
        1 events 0 [0,1) <90: a@85=1
        1 requests 0 [0,0) <90
        """,
    )
    operator = restored(operator)
    assert play(
        operator,
        """
        2 events 0 [1,2) <91: a@85=1
        2 requests 0 [0,1) <91: a@90
        """,
    ) == ["2: frontier 91; a@90 is 1 sum 1"]
    assert operator.counters.duplicates == 1


def test_releases_are_numbered_and_say_what_they_cover() -> None:
    operator = make_operator(2)
    begin = operator.mark
    first, second = operator.receive(
        [parse("1 events 0 [0,2) <10: a@3=1 b@12=2"), parse("1 events 1 [0,0) <10"),
         parse("1 requests 0 [0,1) <9: a@8"),
         parse("2 events 0 [2,5) <30: a@12=1 a@13=1 a@14=1"), parse("2 events 1 [0,1) <30: a@20=2"),
         parse("2 requests 0 [1,1) <30")]
    )  # fmt: skip
    assert begin == first_mark(operator.key, [0, 0, 0], TIME_MIN)
    assert (first.mark_before, second.mark_before) == (begin, first.mark)
    assert first.mark == next_mark(begin, 1, first.positions, 9)
    assert operator.mark == second.mark == next_mark(first.mark, 2, second.positions, 30)
    assert (first.since_us, second.since_us) == (None, first.frontier_us)
    assert (first.number, first.frontier_us, first.positions, first.events) == (1, 9, (2, 0, 1), 1)
    assert (second.number, second.positions, second.events) == (2, (5, 1, 1), 5)


# Eager: rows go to the kernel as they come, and each answer states its instant.


def test_an_eager_answer_states_its_instant() -> None:
    """It uses what arrived before its request, and its instant is that of all of that.

    The request at 4 does not see the event at 5, which arrived after it. The late event at 7 counts
    after the answer as of 9. A shard without rows moves on with the watermarks.
    """
    operator = make_operator(mode=Mode.EAGER)
    assert play(
        operator,
        """
        1 events 0 [0,2) <5: a@3=1 b@5=2
        1 requests 0 [0,1) <0: a@4

        2 events 0 [2,2) <5
        2 requests 0 [1,2) <0: a@9

        3 events 0 [2,3) <5: a@7=4
        3 requests 0 [2,3) <0: a@8

        4 events 0 [3,3) <99
        4 requests 0 [3,3) <99
        """,
    ) == [
        (
            "1: frontier 6; a@4 is 1 sum 1; "
            "a from 4 to 30 revision 1 is 1 sum 1; b from 6 to 30 revision 1 is 1 sum 2"
        ),
        "2: frontier 9; a@9 is 1 sum 1",
        "3: frontier 10; a@8 as of 10 is 2 sum 5; a from 10 to 30 revision 2 is 2 sum 5",
        (
            "4: frontier 99; b from 30 to ever revision 1 is 0 sum 0; "
            "a from 30 to ever revision 2 is 0 sum 0"
        ),
    ]
    assert operator.counters.late == 1


def test_an_eager_release_of_late_events_keeps_the_frontier_and_has_a_mark_of_its_own() -> None:
    """Marks name releases, so a store that has lost one of them is found at an equal frontier."""
    operator = make_operator(mode=Mode.EAGER)
    assert play(
        operator,
        """
        1 events 0 [0,1) <0: a@8=1
        1 requests 0 [0,0) <0

        2 events 0 [1,2) <0: a@3=2
        2 requests 0 [0,1) <0: b@9

        3 events 0 [2,2) <0
        3 requests 0 [1,2) <0: b@10

        4 events 0 [2,3) <0: a@9=4
        4 requests 0 [2,2) <0
        """,
    ) == [
        "1: frontier 9; a from 9 to 30 revision 1 is 1 sum 1",
        "2: frontier 9; b@9 is 0 sum 0; a from 9 to 30 revision 2 is 2 sum 3",
        "3: frontier 10; b@10 is 0 sum 0",
        "4: frontier 11; a from 11 to 30 revision 3 is 3 sum 7",
    ]
    (late,) = operator.receive(
        [parse("5 events 0 [3,4) <0: a@4=8"), parse("5 requests 0 [2,2) <0")]
    )
    assert (late.since_us, late.frontier_us, late.events) == (11, 11, 1)
    assert late.entry is not None
    assert late.mark != late.mark_before


def test_an_eager_operator_still_keeps_the_order_of_polls() -> None:
    assert play(
        make_operator(mode=Mode.EAGER),
        """
        2 events 0 [1,2) <0: a@7=4
        2 requests 0 [1,2) <0: a@8

        1 events 0 [0,1) <0: a@3=1
        1 requests 0 [0,1) <0: a@8
        """,
    ) == [
        "nothing",
        "1: frontier 8; a@8 is 1 sum 1; a from 4 to 30 revision 1 is 1 sum 1",
        "2: frontier 9; a@8 as of 9 is 2 sum 5; a from 9 to 30 revision 2 is 2 sum 5",
    ]


# Restarts.


def restored(operator: ShardOperator) -> ShardOperator:
    again = make_operator(
        operator.inputs.event_partitions, operator.inputs.request_partitions, mode=operator.mode
    )
    again.restore(operator.head(), operator.snapshot(), [])
    return again  # type: ignore[no-any-return]


def test_waiting_rows_survive_a_restart() -> None:
    operator = make_operator()
    first = Player(operator)
    assert first.play(
        """
            1 events 0 [0,2) <10: a@3=1 a@12=2
            3 events 0 [4,5) <30: a@20=16
            1 requests 0 [0,2) <10: a@8 a@15
            """
    ) == ["1: frontier 10; a@8 is 1 sum 1; a from 4 to 30 revision 1 is 1 sum 1"]
    second = Player(restored(operator), first.asked)
    assert second.play(
        """
            2 events 0 [2,4) <16: a@13=4 a@14=8
            2 requests 0 [2,2) <40
            3 requests 0 [2,2) <40
            """
    ) == [
        "2: frontier 16; a@15 is 4 sum 15; a from 15 to 30 revision 4 is 4 sum 15",
        "3: frontier 30; a from 30 to 40 revision 5 is 4 sum 30",
    ]


def test_overflows_are_counted_across_a_restart_from_the_log() -> None:
    """Replaying the log applies events but answers nothing, so it counts no overflows."""
    operator = make_operator()
    batches = [
        parse(f"1 events 0 [0,2) <10: a@3={2**63 - 1} a@4=1"),
        parse("1 requests 0 [0,1) <10: a@8"),
    ]
    (release,) = operator.receive(batches)
    assert release.entry is not None
    assert operator.state.counters.overflows > 0
    again = make_operator()
    again.restore(operator.head(), None, [release.entry])
    assert again.state.counters == operator.state.counters


@pytest.mark.parametrize("publish", [Publish.NOTHING, Publish.EVERY])
def test_overflows_of_polls_that_came_together_are_counted_poll_by_poll(publish: Publish) -> None:
    batches = [
        parse(f"1 events 0 [0,2) <10: a@3={2**63 - 1} a@4=1"),
        parse("1 requests 0 [0,1) <10: a@8"),
        parse("2 events 0 [2,2) <20"),
        parse("2 requests 0 [1,3) <20: a@12 a@13"),
        parse("3 events 0 [2,3) <30: a@21=-7"),
        parse("3 requests 0 [3,4) <30: a@28"),
    ]
    together, one_by_one = make_operator(), make_operator()
    together.publish = one_by_one.publish = publish
    releases = together.receive(batches)
    assert [one.kernel for one in releases] == [
        release.kernel
        for at in range(0, 6, 2)
        for release in one_by_one.receive(batches[at : at + 2])
    ]
    counts = [one.kernel["overflows"] for one in releases]
    published = publish is Publish.EVERY
    # In the third poll the total fits again.
    assert counts == [1 + published, 3 + published, 3 + published]
    again = make_operator()
    assert [one.entry is None for one in releases] == [True, True, False]
    assert releases[-1].entry is not None
    again.restore(together.head(), None, [releases[-1].entry])
    assert again.snapshot() == one_by_one.snapshot()


@pytest.mark.parametrize(
    "other",
    [
        {"view": "other"},
        {"hash": "0" * 16},
        {"shard": 1},
        {"shards": 2},
    ],
)
def test_state_of_another_key_is_refused(other: dict[str, object]) -> None:
    operator = make_operator()
    again = make_operator()
    again.key = dataclasses.replace(again.key, **other)
    with pytest.raises(StateMismatch, match="belongs to user shard 0 of 1"):
        again.restore(operator.head(), operator.snapshot(), [])


def test_state_of_another_number_of_partitions_is_refused() -> None:
    operator = make_operator(2, 1)
    with pytest.raises(StateMismatch, match="knows 3 partitions of events and requests, here are"):
        make_operator(1, 1).restore(operator.head(), operator.snapshot(), [])


def test_state_of_another_version_is_refused_by_name() -> None:
    operator = make_operator()
    head, snapshot = operator.head(), operator.snapshot()
    version = VERSIONS[Kind.OPERATOR_HEAD]
    with pytest.raises(StateVersionError, match=f"has version {version + 1}, this code reads"):
        make_operator().restore(of_version(head, version + 1), snapshot, [])
    version = VERSIONS[Kind.OPERATOR_SNAPSHOT]
    with pytest.raises(StateVersionError, match=f"has version {version + 1}, this code reads"):
        make_operator().restore(head, of_version(snapshot, version + 1), [])


def test_a_key_says_what_it_is() -> None:
    assert str(OperatorKey("user", "abc", 1, 4)) == "user shard 1 of 4"


def _text(release: Release) -> object:
    # A snapshot renumbers entities: their order may change, but not that of one entity's rows.
    published = sorted(
        release.publications.to_pylist(),
        key=lambda row: (str(row["key"]), row["event_timestamp"], row["revision"]),
    )
    return (
        release.number,
        release.mark,
        release.seen,
        release.kernel,
        release.frontier_us,
        release.positions,
        release.events,
        release.answers.serialize().to_pybytes(),
        published,
    )


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.sampled_from(Mode),
    st.integers(0, 2),
    st.randoms(use_true_random=False),
    st.sampled_from([Publish.NEWEST, Publish.EVERY]),
)
def test_an_operator_that_is_restarted_anywhere_equals_one_that_is_not(
    seed: int, mode: Mode, view: int, chance: random.Random, publish: Publish
) -> None:
    """From a head, a snapshot now and then, and the log since: the same releases and state.

    Batches come out of order and more than once, so that some wait when it is restarted.
    """
    rows = random_rows(seed, trips=40, hails=20)
    arrived = arrivals(PROJECT, rows, PARTITIONS, chance)
    polls = random_polls(PROJECT, arrived, end_of(rows), 10, chance)
    stream = PlainStream(PROJECT, 1, PARTITIONS, mode=mode)
    whole = stream.operator(view, 0)
    whole.publish = publish
    elements = [data for v, _, data in elements_of(PROJECT, 1, polls) if v == view]
    elements += chance.sample(elements, 3)
    chance.shuffle(elements)

    def fresh() -> ShardOperator:
        operator = PlainStream(PROJECT, 1, PARTITIONS, mode=mode).operator(view, 0)
        operator.publish = publish
        return operator

    broken = fresh()
    snapshot: bytes | None = None
    log: list[bytes] = []
    head = broken.head()
    for data in elements:
        batches: list[SequencedBatch] = list(decode_batches(data, whole.event_schema))
        expected = whole.receive(batches)
        if chance.random() < 0.6:
            broken = fresh()
            assert broken.restore(head, snapshot, log) >= 0
            chance.shuffle(log)
        found = broken.receive(batches)
        assert list(map(_text, found)) == list(map(_text, expected))
        log += [release.entry for release in found if release.entry is not None]
        if chance.random() < 0.2 or broken.is_whole_due:
            snapshot, log = broken.snapshot(), []
            broken.written_whole()
        head = broken.head()
    assert encode(broken.state) == encode(whole.state)
    assert broken.counters == whole.counters
    assert broken.expected == whole.expected
    assert mode is Mode.EAGER or whole.state.frontier_us == end_of(rows)
    assert whole.state.frontier_us > TIME_MIN


@st.composite
def quiet_polls(draw: st.DrawFn) -> list[list[str]]:
    """Polls whose watermarks rise without rows, and repeats that the source still accepts."""
    polls, watermark, events, requests = [], 0, 0, 0
    for number in range(1, draw(st.integers(4, 12)) + 1):
        watermark += draw(st.sampled_from((0, 1, 5, 40)))
        behind = draw(st.sampled_from((0, 0, 0, 30))) if number > 1 else 0
        rows = [
            f"{key}@{max(0, watermark + 10 - back)}=1"
            for key, back in draw(
                st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), max_size=6)
            )
        ]
        asked = draw(st.booleans())
        polls.append(
            [
                f"{number} events 0 [{events},{events + len(rows)}) <{watermark}: "
                + " ".join(rows),
                f"{number} requests 0 [{requests},{requests + asked}) <{watermark - behind}:"
                + (f" a@{watermark}" if asked else ""),
            ]
        )
        events, requests = events + len(rows), requests + asked
    return polls


@settings(max_examples=25, deadline=None)
@given(quiet_polls(), st.sampled_from(Mode), st.randoms(use_true_random=False))
def test_what_an_operator_has_forgotten_does_not_depend_on_where_it_is_restarted(
    polls: list[list[str]], mode: Mode, chance: random.Random
) -> None:
    """A repeat that comes after its time counts again, or not, whatever the state was made from."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr("tidemill.features.kernel.dedupe.FORGET_FROM", 4)
        whole, broken = make_operator(mode=mode), make_operator(mode=mode)
        snapshot: bytes | None = None
        log: list[bytes] = []
        files = SavepointFiles()
        for number, lines in enumerate(polls):
            batches = [parse(line) for line in lines]
            expected, found = whole.receive(batches), broken.receive(batches)
            assert list(map(_text, found)) == list(map(_text, expected))
            assert _remembers(broken) == _remembers(whole)
            log += [release.entry for release in found if release.entry is not None]
            files.add(found)
            if broken.is_whole_due:
                files.begin_anew()
            if chance.random() < 0.2 or broken.is_whole_due:
                snapshot, log = broken.snapshot(), []
                broken.written_whole()
            if chance.random() < 0.5:
                at = Path(folder) / f"{number:05d}"
                at.mkdir()
                files.keep(at, broken)
                if chance.random() < 0.5:  # another run goes on from the savepoint
                    broken = make_operator(mode=mode)
                    read_handoff(at, broken)
                    snapshot, log, files = broken.snapshot(), [], SavepointFiles()
                    broken.written_whole()
            broken.drop_forgets(broken.number if files.base_at is None else files.base_at)
            if chance.random() < 0.4:  # or the engine makes the operator again
                head, broken = broken.head(), make_operator(mode=mode)
                chance.shuffle(log)
                broken.restore(head, snapshot, log)
                files = SavepointFiles()


def _remembers(operator: ShardOperator) -> tuple[list[object], int]:
    pairs, times = operator.rows_seen.entries()
    return sorted(zip(pairs.tolist(), times.tolist(), strict=True)), operator.rows_seen.forget_at
