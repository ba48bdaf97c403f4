"""Frames: they decode to what was encoded, and any other bytes are refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.frames import bomb, damaged, of_version
from tidemill.features.errors import DamagedState, StateError, StateMismatch, StateVersionError
from tidemill.pipelines.io.framing import (
    MAGIC,
    VERSIONS,
    Kind,
    decode_document,
    encode_document,
    frame,
    unframe,
)

ADVICE = "what to do"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda some: st.lists(some) | st.dictionaries(st.text(), some),
    max_leaves=9,
)


@given(
    st.sampled_from(Kind),
    st.text(),
    st.dictionaries(st.text(), JSON),
    st.lists(st.binary()),
    st.integers(0, 7),
)
def test_a_document_comes_back_as_it_was(
    kind: Kind, key: str, fields: dict[str, object], blobs: list[bytes], shift: int
) -> None:
    """At any address in memory; and equal documents have equal bytes."""
    data = encode_document(kind, key, fields, blobs)
    shifted = pa.py_buffer(bytes(shift) + data).slice(shift)
    found = decode_document(shifted, kind, "this", ADVICE, key)
    assert (found.kind, found.key, found.fields) == (kind, key, fields)
    assert [bytes(blob) for blob in found.blobs] == blobs
    assert all(blob.address % 8 == 0 for blob in found.blobs)
    again = dict(reversed(found.fields.items()))
    assert encode_document(found.kind, found.key, again, found.blobs) == data


def test_the_header_is_as_it_is_written_down() -> None:
    """Pin the layout in the module docstring, so that no version changes it by accident."""
    data = frame(Kind.POLL, "äb", [b"12", b"3"])
    assert data[:8] == MAGIC == b"\x89TMILL\r\n"
    assert data[8:24] == bytes([1, 0]) + VERSIONS[Kind.POLL].to_bytes(2, "little") + bytes(
        [3, 0, 0, 0]
    ) + (3).to_bytes(8, "little")
    assert data[32:] == "äb".encode() + bytes(5) + b"123"
    assert {kind.name: int(kind) for kind in Kind} == {
        "POLL": 1,
        "BATCHES": 2,
        "REQUEST_PART": 3,
        "ANSWER_PART": 4,
        "SAVEPOINT_PART": 5,
        "PUBLISHED": 6,
        "UNANSWERED": 7,
        "EXCHANGED": 8,
        "OPERATOR_HEAD": 16,
        "OPERATOR_SNAPSHOT": 17,
        "LOGGED_RELEASE": 18,
        "JOINER_STATE": 19,
        "LOGGED_PARTS": 20,
        "OPERATOR_FILE": 21,
        "LOGGED_POLL": 22,
        "OPERATOR_SAVEPOINT": 23,
        "OPERATOR_ENTRIES": 24,
        "OUTPUTS": 25,
    }


def test_any_damage_to_a_frame_is_found() -> None:
    data = encode_document(Kind.POLL, "key", {"a": [1, 2, 3]}, [b"some bytes", b"more of them"])
    for _, harmed in damaged(data):
        with pytest.raises(StateError, match=f"^this: .*; {ADVICE}$"):
            unframe(harmed, Kind.POLL, "this", ADVICE)


def test_another_kind_version_or_key_is_refused_by_name() -> None:
    data = frame(Kind.POLL, "mine", [b"content"])
    assert bytes(unframe(data, (Kind.BATCHES, Kind.POLL), "this", ADVICE).content) == b"content"
    with pytest.raises(DamagedState, match="this: holds POLL, expected was BATCHES; what to do"):
        unframe(data, Kind.BATCHES, "this", ADVICE)
    with pytest.raises(StateVersionError, match="this: has version 9, this code reads 2; what to"):
        unframe(of_version(data, 9), Kind.POLL, "this", ADVICE)
    with pytest.raises(StateMismatch, match="belongs to 'mine', expected was 'yours'; what to do"):
        unframe(data, Kind.POLL, "this", ADVICE, "yours")


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    made = tmp_path / "made by the pickle"
    with pytest.raises(StateVersionError, match="as a pickle, which is not loaded; what to do"):
        decode_document(bomb(made), Kind.POLL, "this", ADVICE)
    assert not made.exists()
