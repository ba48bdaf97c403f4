"""What topics have lost, and what a person has to accept, exactly."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tidemill.features.errors import InputError, PositionOutOfRange, RecreatedTopic, StateMismatch
from tidemill.pipelines.ingest.lost_messages import (
    ReadTo,
    check_accepted,
    check_option,
    code_of,
    find_losses,
    who_accepts,
)
from tidemill.pipelines.ingest.topics import TopicExtent
from tidemill.pipelines.io.live.lost import (
    INCARNATION,
    AcceptedLoss,
    Loss,
    Why,
    after_losses,
    base_of,
    offset_of,
)

READ = ReadTo({"paid": [120, 40], "asked": [7]}, {"paid": "id-1", "asked": "id-a"})


def extents(
    first: tuple[int, ...] = (0, 0),
    ends: tuple[int, ...] = (200, 200),
    identity: str = "id-1",
) -> dict[str, TopicExtent]:
    return {
        "paid": TopicExtent("payments", identity, first, ends),
        "asked": TopicExtent("checks", "id-a", (0,), (7,)),
    }


def deleted(partition: int, start: int, stop: int) -> Loss:
    return Loss("paid", "payments", partition, Why.DELETED, start, stop, "id-1", "id-1")


def accepted(*losses: Loss, poll: int = 5) -> list[AcceptedLoss]:
    return [AcceptedLoss(poll, loss, 1_000_000, "me@here", "") for loss in losses]


def test_positions_that_topics_hold_are_no_loss() -> None:
    assert find_losses(READ, extents()) == []
    assert find_losses(READ, extents((120, 40), (120, 40))) == []


def test_messages_before_the_first_offset_are_lost() -> None:
    (loss,) = find_losses(READ, extents((0, 100)))
    assert loss == deleted(1, 40, 100)
    assert (loss.messages, loss.option) == (60, "paid/1@40-99")
    assert loss.describe() == (
        "up to 60 messages of 'paid' partition 1 (offsets 40 to 99) were lost by the topic"
    )
    assert after_losses(READ.positions, [loss]) == {"paid": [120, 100], "asked": [7]}


def test_of_one_message_that_was_lost_the_number_is_known() -> None:
    assert deleted(0, 120, 121).describe().startswith("1 message of 'paid' partition 0")


def test_where_a_topic_was_made_again_its_offsets_begin_anew() -> None:
    found = find_losses(READ, extents(ends=(3, 0), identity="id-2"))
    assert [(one.partition, one.why, one.start, one.stop) for one in found] == [
        (0, Why.RECREATED, 120, INCARNATION),
        (1, Why.RECREATED, 40, INCARNATION),
    ]
    assert {one.option for one in found} == {"paid@id-2"}
    assert [one.messages for one in found] == [None, None]
    assert "an unknown number of messages of partition 1, from offset 40 on" in found[1].describe()
    # The next time the offsets begin anew once more.
    position = found[0].stop + 3
    assert (offset_of(position), base_of(position)) == (3, INCARNATION)
    later = ReadTo({"paid": [position, INCARNATION], "asked": [7]}, {"paid": "id-2"})
    assert [one.stop for one in find_losses(later, extents(identity="id-3"))] == [
        2 * INCARNATION,
        2 * INCARNATION,
    ]


def test_what_the_new_topic_has_lost_already_is_a_loss_of_its_own() -> None:
    found = find_losses(READ, extents((10, 0), (20, 5), "id-2"))
    assert [one.option for one in found] == ["paid@id-2", "paid/0@0-9", "paid@id-2"]
    assert after_losses(READ.positions, found)["paid"] == [INCARNATION + 10, INCARNATION]


def test_a_topic_that_was_made_again_with_other_partitions_is_refused() -> None:
    with pytest.raises(StateMismatch, match="made again, with 1 partitions, and the stream reads"):
        find_losses(READ, extents((0,), (5,), "id-2"))
    # A backfill takes in partitions that a topic has got.
    with pytest.raises(StateMismatch, match="make it with 2 partitions, or run `tidemill backfill"):
        find_losses(READ, extents((0, 0, 0), (5, 5, 5), "id-2"))


def test_a_log_that_knows_no_ids_takes_the_topic_that_is_there() -> None:
    assert find_losses(ReadTo(READ.positions, {}), extents(identity="id-2")) == []


def test_where_a_partition_ends_before_the_position_reading_goes_on_where_it_was_seen_to_end() -> (
    None
):
    (loss,) = find_losses(READ, extents(ends=(90, 200)))
    assert (loss.why, loss.start, loss.stop) == (Why.SHORTER, 120, INCARNATION + 90)
    assert (loss.option, loss.messages) == ("paid/0@90-119", None)
    # Messages came meanwhile: those behind the end that was seen are read.
    (again,) = find_losses(READ, extents(ends=(95, 200)), [loss.option])
    assert again == loss
    # It has become shorter still: that was not seen.
    (other,) = find_losses(READ, extents(ends=(80, 200)), [loss.option])
    assert other.option == "paid/0@80-119"


def test_all_that_is_lost_must_be_accepted_as_it_is_now() -> None:
    losses = [deleted(0, 120, 150), deleted(1, 40, 100)]
    assert check_accepted(losses, ["paid/1@40-99", "paid/0@120-149"], []) == []
    assert check_accepted(losses, [code_of(losses)], []) == []
    for options in ([], ["paid/0@120-149"], ["paid/0@120-149", "paid/1@40-98"]):
        with pytest.raises(PositionOutOfRange, match=re.escape(code_of(losses))) as caught:
            check_accepted(losses, options, [])
        assert len(str(caught.value)) < 293  # so the command line shows all of it
    more = [losses[0], deleted(1, 40, 101)]
    with pytest.raises(PositionOutOfRange, match=code_of(more)):
        check_accepted(more, [code_of(losses)], [])


def test_the_error_says_what_is_lost_and_the_command_that_goes_on() -> None:
    loss = deleted(1, 40, 100)
    with pytest.raises(PositionOutOfRange) as caught:
        check_accepted([loss], [], [])
    assert str(caught.value) == (
        "up to 60 messages of 'paid' partition 1 (offsets 40 to 99) were lost by the topic; "
        "nothing is skipped by itself: restore the topic, or go on without: "
        "tidemill stream --resume --accept-lost paid/1@40-99"
    )
    error = caught.value
    assert (error.topic, error.partition, error.position, error.first) == ("payments", 1, 40, 100)
    again = find_losses(READ, extents(identity="id-2"))
    with pytest.raises(RecreatedTopic, match="tidemill stream --accept-lost paid@id-2"):
        check_accepted(again, [], [], "tidemill stream")


def test_an_option_that_was_accepted_before_changes_nothing() -> None:
    losses = [deleted(0, 120, 150), deleted(1, 40, 100)]
    before = accepted(*losses)
    options = ["paid/0@120-149", code_of(losses)]
    said = check_accepted([], options, before)
    assert said == [
        f"--accept-lost {one} changes nothing: it was accepted at 1970-01-01T00:00:01Z"
        for one in options
    ]
    # What is lost since is not accepted by it.
    with pytest.raises(PositionOutOfRange):
        check_accepted([deleted(0, 150, 160)], options, before)


def test_an_option_for_what_is_not_lost_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing is lost, and --accept-lost paid/0@120-149"):
        check_accepted([], ["paid/0@120-149"], accepted(deleted(1, 40, 100)))
    losses = [deleted(0, 120, 150)]
    with pytest.raises(InputError, match="--accept-lost paid/1@1-2: that is not lost"):
        check_accepted(losses, [losses[0].option, "paid/1@1-2"], [])


@pytest.mark.parametrize("text", ["paid/0@1-2", "paid@Qx8_-f", "all-0123456789ab"])
def test_an_option_has_the_form_that_is_printed(text: str) -> None:
    assert check_option(text) == text


@pytest.mark.parametrize("text", ["", "all", "paid", "paid/0", "paid/0@5", "paid/x@1-2", "all-x"])
def test_another_form_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="expected SOURCE/PARTITION@FIRST-LAST"):
        check_option(text)


def test_who_accepts_has_a_name_on_a_machine_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> Any:
        raise KeyError("uid not found")

    assert "@" in who_accepts()
    monkeypatch.setattr("getpass.getuser", nameless)
    assert re.match(r"\d+@", who_accepts())
