"""Messages between stages: decoding restores each kind, and only for its view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.frames import bomb, damaged, of_version
from tests.support.streaming_project import PROJECT
from tidemill.features.errors import DamagedState, StateError, StateMismatch, StateVersionError
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.stream.answer_parts import (
    AnswerPart,
    Part,
    RequestPart,
    SavepointPart,
    Unanswered,
)
from tidemill.pipelines.stream.operator import Release
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.wire_format import (
    Published,
    decode_logged_parts,
    decode_part,
    decode_unanswered,
    encode_logged_parts,
    encode_part,
    encode_unanswered,
    pack_publications,
    unpack_publications,
)

ROWS = pa.record_batch({"text": ["a", None, "ç"], "number": pa.array([1, None, -3], pa.int64())})
ZONE = OperatorKey("zone", PROJECT.views[1].hash, 3, 4)
PARTS: list[Part] = [
    RequestPart(2**50 + 7, ROWS),
    AnswerPart(1, 3, 12, -(2**62), ROWS),
    AnswerPart(1, 3, 0, 2**62, None),
    SavepointPart(1, 3, 12, (5, 2**50 + 7)),
    SavepointPart(1, 3, 0, ()),
]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_comes_back_as_it_was(part: Part) -> None:
    for key, project in (("", None), (ZONE.text, PROJECT)):
        assert decode_part(encode_part(part, key), project) == part


def test_only_the_rows_of_a_slice_travel() -> None:
    whole = pa.record_batch({"number": range(10_000)})
    data = encode_part(RequestPart(1, whole.slice(70, 2)))
    found = decode_part(data)
    assert isinstance(found, RequestPart)
    assert found.rows.to_pydict() == {"number": [70, 71]}
    assert len(data) < 1_000


@pytest.mark.parametrize("sender", [replace(ZONE, view="cab"), replace(ZONE, hash="0" * 16)])
def test_a_part_of_another_view_or_definition_is_refused(sender: OperatorKey) -> None:
    for part in PARTS[1:]:
        with pytest.raises(StateMismatch, match=f"a message is of view {sender.view!r} of defin"):
            decode_part(encode_part(part, sender.text), PROJECT)
    far = encode_part(AnswerPart(7, 0, 1, 2, None), ZONE.text)
    with pytest.raises(StateMismatch, match="number 7 here is there is none"):
        decode_part(far, PROJECT)


@pytest.mark.parametrize("since", [None, -5])
def test_publications_come_back_as_they_were(since: int | None) -> None:
    release = Release(4, since, 77, (1, 2), ROWS, ROWS, 3)
    data = pack_publications(1, 3, release, ZONE.text)
    assert unpack_publications(data, PROJECT) == Published(1, 3, since, 77, ROWS, is_news=True)
    wrong = pack_publications(1, 3, release, replace(ZONE, hash="0" * 16).text)
    with pytest.raises(StateMismatch, match="a message is of view 'zone' of definition 00000"):
        unpack_publications(wrong, PROJECT)


def test_requests_without_an_answer_come_back_as_they_were() -> None:
    lost = Unanswered(ROWS, 3, ("cab", "zone"))
    assert decode_unanswered(encode_unanswered(lost)) == lost


def test_logged_parts_come_back_in_their_order() -> None:
    parts = [encode_part(part) for part in PARTS]
    number, found = decode_logged_parts(encode_logged_parts(300, parts))
    assert number == 300
    assert [decode_part(data) for data in found] == PARTS


def test_a_poll_comes_back_as_it_was() -> None:
    parts = (PollPart("trips", 1, 5, 8, -7, ROWS), PollPart("rain", 0, 2, 2, 2**61, None))
    for poll in (Poll(3, parts), Poll(-1, (), is_last=True)):
        assert Poll.decode(poll.encode()) == poll


MESSAGES = {
    "part": (encode_part(PARTS[1]), decode_part),
    "publications": (
        pack_publications(1, 3, Release(4, None, 77, (), ROWS, ROWS, 3)),
        unpack_publications,
    ),
    "unanswered": (encode_unanswered(Unanswered(ROWS, 3, ())), decode_unanswered),
    "logged parts": (encode_logged_parts(1, [b"x"]), decode_logged_parts),
    "poll": (Poll(1, (PollPart("trips", 1, 5, 8, -7, ROWS),)).encode(), Poll.decode),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_that_are_no_message_of_this_version_are_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    data, read = MESSAGES[name]
    for _, harmed in damaged(data):
        with pytest.raises(StateError, match="run the stream from its last savepoint"):
            read(harmed)
    with pytest.raises(StateVersionError, match="has version 77"):
        read(of_version(data, 77))
    made = tmp_path / "made by the pickle"
    with pytest.raises(StateVersionError, match="as a pickle, which is not loaded"):
        read(bomb(made))
    assert not made.exists()
    others = [other for kind, (other, _) in MESSAGES.items() if kind != name]
    for other in others:
        with pytest.raises(DamagedState, match="expected was"):
            read(other)
