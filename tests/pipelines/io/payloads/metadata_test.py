"""Columns from what a message carries beside its payload."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.payloads import checked, faults_of, messages, rejected_of, rows_of
from tidemill.features.errors import ConfigurationError
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import Decoded
from tidemill.pipelines.io.payloads.json_rows import JsonDecoder
from tidemill.pipelines.io.payloads.metadata import Metadata


def decode(
    given: Messages, columns: dict[str, str], names: list[str] | None = None, **options: Any
) -> list[Decoded]:
    reader = Reader("orders", names)
    decoded = list(JsonDecoder(reader, Metadata(columns, **options)).decode(given, 7))
    checked(decoded, 7)
    return decoded


def test_each_kind_of_metadata_is_a_column_of_its_type() -> None:
    given = messages(
        [b'{"a":1}', b'[{"a":2},{"a":3}]'],
        keys=["é".encode(), None],
        headers=[[("trace", b"t"), ("other", b"o")], [("trace", None)]],
    )
    columns = {
        "key": "key",
        "at": "timestamp",
        "place": "offset",
        "part": "partition",
        "trace": "header:trace",
        "none": "header:none",
    }
    at = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
    later = at + datetime.timedelta(milliseconds=1)
    rest = {"part": 3, "none": None}
    assert rows_of(decode(given, columns)) == [
        {"a": "1", "key": "é", "at": at, "place": 100, "trace": "t", **rest},
        {"a": "2", "key": None, "at": later, "place": 101, "trace": None, **rest},
        {"a": "3", "key": None, "at": later, "place": 101, "trace": None, **rest},
    ]


def test_a_message_without_a_timestamp_has_none() -> None:
    given = replace(messages([b"{}"]), timestamps_us=np.array([-1000]))
    assert rows_of(decode(given, {"at": "timestamp"})) == [{"at": None}]


def test_texts_that_are_not_utf8_reject_their_rows() -> None:
    given = messages(
        [b"[{},{}]", b"{}", b"{}"],
        keys=[b"k\xff", b"k", b"k"],
        headers=[(), [("h", b"\xff")], [("h", b"x")]],
    )
    decoded = decode(given, {"key": "key", "h": "header:h"})
    assert rows_of(decoded) == [{"key": "k", "h": "x"}]
    assert faults_of(decoded) == [(place, Reason.INVALID_UTF8) for place in (7, 8, 9)]
    details = [row["detail"] for row in rejected_of(decoded)]
    assert "found byte 0xff at byte 1 of the message's key" in details[0]
    assert "found byte 0xff at byte 0 of the message's header 'h'" in details[2]
    assert [row["payload"] for row in rejected_of(decoded)] == [b"{}", b"{}", b"{}"]


def test_a_header_twice_rejects_unless_the_last_is_asked_for() -> None:
    given = messages([b"{}"], headers=[[("h", b"1"), ("g", b"3"), ("h", b"2")]])
    (row,) = rejected_of(decode(given, {"h": "header:h"}))
    assert (row["reason"], "2 times" in row["detail"]) == (Reason.REPEATED_HEADER, True)
    assert rows_of(decode(given, {"h": "last_header:h"})) == [{"h": "2"}]


@pytest.mark.parametrize("names", [None, ["a", "place"]])
@pytest.mark.parametrize("other", [b'{"place":1,"place":2,"a":1}', b'{"a":[],"place":null}'])
def test_a_payload_with_a_metadata_column_is_rejected(
    names: list[str] | None, other: bytes
) -> None:
    given = messages([b'{"a":1}', b'{"a":1,"place":null}', other])
    decoded = decode(given, {"place": "offset"}, names)
    assert rows_of(decoded) == [{"a": "1", "place": 100}]
    second = Reason.DUPLICATE_KEY if other.count(b"place") == 2 else Reason.METADATA_CONFLICT
    assert faults_of(decoded) == [(8, Reason.METADATA_CONFLICT), (9, second)]
    alike = decode(messages([b'{"a":1,"place":2}'] * 3), {"place": "offset"}, names)
    assert faults_of(alike) == [(place, Reason.METADATA_CONFLICT) for place in (7, 8, 9)]


@pytest.mark.parametrize("names", [None, ["a", "place"]])
def test_metadata_wins_where_it_is_declared_to(names: list[str] | None) -> None:
    given = messages([b'{"a":1}', b'{"a":2,"place":"x"}', b'{"place":[1],"a":3}'])
    decoded = decode(given, {"place": "offset"}, names, wins=True)
    expected = [{"a": str(n), "place": 99 + n} for n in (1, 2, 3)]
    assert rows_of(decoded) == expected


@pytest.mark.parametrize("source", ["topic", "header", "header:", "last_header:", "Key"])
def test_metadata_that_there_is_not(source: str) -> None:
    with pytest.raises(ConfigurationError, match="is not known"):
        Metadata({"a": source})
