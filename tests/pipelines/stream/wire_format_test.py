"""Messages between stages: decoding restores each kind, and only for its view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.frames import bomb, damaged, of_version
from tests.support.streaming_project import PARTITIONS, PROJECT
from tidemill.features.errors import DamagedState, StateError, StateMismatch, StateVersionError
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.stream.answer_parts import (
    AnswerPart,
    Part,
    RequestPart,
    SavepointPart,
    Unanswered,
)
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions, make_operator
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.wire_format import (
    Published,
    decode_logged_parts,
    decode_part,
    decode_unanswered,
    encode_logged_parts,
    encode_part,
    encode_unanswered,
    everything,
    pack_publications,
    unpack_publications,
)

ROWS = pa.record_batch({"text": ["a", None, "ç"], "number": pa.array([1, None, -3], pa.int64())})
ZONE = OperatorKey("zone", PROJECT.views[1].hash, 3, 4)
OPERATOR = make_operator(PROJECT, ZONE.text, FeaturizeOptions("run", 4, PARTITIONS))
OPERATOR.attempt = 7
RELEASE = Release(
    number=4, mark_before=b"b" * 16, mark=b"m" * 16, since_us=-5, frontier_us=77, positions=(1, 2),
    answers=ROWS, publications=ROWS, events=3, seen={}, kernel={}, entry=None,
)  # fmt: skip
PARTS: list[Part] = [
    RequestPart(2**50 + 7, ROWS),
    AnswerPart("zone", 3, 12, -(2**62), ROWS),
    AnswerPart("zone", 3, 0, 2**62, None),
    SavepointPart("zone", 3, 12, (5, 2**50 + 7)),
    SavepointPart("zone", 3, 0, ()),
]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_comes_back_as_it_was(part: Part) -> None:
    for project in (None, PROJECT):
        assert decode_part(encode_part(part, ZONE.text), project) == part


def test_only_the_rows_of_a_slice_travel() -> None:
    whole = pa.record_batch({"number": range(10_000)})
    data = encode_part(RequestPart(1, whole.slice(70, 2)))
    found = decode_part(data)
    assert isinstance(found, RequestPart)
    assert found.rows.to_pydict() == {"number": [70, 71]}
    assert len(data) < 1_000


def others(sender: OperatorKey) -> list[Part]:
    return [replace(part, view=sender.view) for part in PARTS if not isinstance(part, RequestPart)]


def test_a_part_of_an_unknown_view_or_another_definition_is_refused_by_name() -> None:
    strange = replace(ZONE, view="tram")
    for part in others(strange):
        with pytest.raises(StateMismatch, match=r"view 'tram' .*no such view, but cab, zone, weat"):
            decode_part(encode_part(part, strange.text), PROJECT)
    changed = replace(ZONE, hash="0" * 16)
    for part in others(changed):
        with pytest.raises(StateMismatch, match=f"view 'zone' of definition 0.* has .*{ZONE.hash}"):
            decode_part(encode_part(part, changed.text), PROJECT)


def test_parts_are_of_their_view_in_a_project_whose_views_have_another_order() -> None:
    reordered = replace(PROJECT, views=PROJECT.views[::-1])
    for part in PARTS:
        assert decode_part(encode_part(part, ZONE.text), reordered) == part
    data = pack_publications(OPERATOR, RELEASE)
    assert unpack_publications(data, reordered).view == "zone"


def test_publications_come_back_as_they_were() -> None:
    for since in (None, -5):
        data = pack_publications(OPERATOR, replace(RELEASE, since_us=since))
        assert unpack_publications(data, PROJECT) == Published(
            view="zone", shard=3, number=4, mark_before=b"b" * 16, mark=b"m" * 16, attempt=7,
            since_us=since, frontier_us=77, rows=ROWS, is_news=True,
        )  # fmt: skip
    fewer = replace(PROJECT, views=PROJECT.views[:1], label=None)
    with pytest.raises(
        StateMismatch, match=r"view 'zone' .* the project has no such view, but cab"
    ):
        unpack_publications(data, fewer)


def test_a_whole_shard_builds_on_no_release() -> None:
    found = everything(OPERATOR)
    assert (found.mark_before, found.mark, found.since_us) == (None, OPERATOR.mark, None)
    assert (found.number, found.attempt, found.is_news) == (0, 7, False)


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
    for poll in (Poll(9, 3, parts), Poll(8, -1, (), is_last=True)):
        assert Poll.decode(poll.encode()) == poll


MESSAGES = {
    "part": (encode_part(PARTS[1], ZONE.text), decode_part),
    "publications": (
        pack_publications(OPERATOR, RELEASE),
        unpack_publications,
    ),
    "unanswered": (encode_unanswered(Unanswered(ROWS, 3, ())), decode_unanswered),
    "logged parts": (encode_logged_parts(1, [b"x"]), decode_logged_parts),
    "poll": (Poll(1, 1, (PollPart("trips", 1, 5, 8, -7, ROWS),)).encode(), Poll.decode),
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
