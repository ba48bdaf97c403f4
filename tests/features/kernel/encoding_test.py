"""State as bytes: decoded to an equal state, canonical, and refused by name if it does not fit."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest

import tidemill
from tests.support.driver import asked, prepared, values_of
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    col,
    count,
    distinct_count,
    last_k,
    mean,
    quantile,
    time_since_last,
)
from tidemill.features.errors import StateError, StateMismatch, StateVersionError
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.encoding import MAGIC, VERSION, canonical_bytes, decode, encode
from tidemill.features.kernel.plan import Plan, make_plan
from tidemill.features.kernel.tiles.state import State
from tidemill.features.oracle.values import Oracle

CLICKS = EventStream(
    "clicks",
    schema={"at": "timestamp", "id": "string", "key": "string", "n": "int64", "x": "float64"},
    event_time="at",
    event_id="id",
)
VIEW = FeatureView(
    "user",
    entity=Entity("user", join_key="key"),
    stream=CLICKS,
    hop="10us",
    features={
        "clicks": count(over="20us"),
        "n": tidemill.sum(col("n"), over="20us"),
        "x": tidemill.sum(col("x"), over="40us"),
        "mean": mean(col("x"), over="20us"),
        "newest": last_k(col("n"), over="20us", k=2),
        "ids": distinct_count(col("id"), over="20us"),
        "median": quantile(col("x"), 0.5, over="20us"),
        "quiet": time_since_last(over="20us"),
    },
)
PLAN = make_plan(VIEW)

ROWS: list[dict[str, Any]] = [
    {"at": 3, "id": "first", "key": "é", "n": 2**62, "x": 0.1},
    {"at": 5, "id": "second of them", "key": "b", "n": None, "x": 1e300},
    {"at": 12, "id": "third", "key": "é", "n": 7, "x": 0.2},
    {"at": 13, "id": "fourth", "key": "é", "n": -1, "x": 5e-324},
    {"at": 13, "id": "fifth", "key": "b", "n": 4, "x": None},
]
ASKED: list[tuple[Any, int]] = [("é", 15), ("b", 15), ("é", 30), ("b", 31), ("nobody", 15)]


def state_of(rows: list[dict[str, Any]], until: int = 15, plan: Plan = PLAN) -> State:
    state = State(plan)
    advance(state, prepared(plan, VIEW, rows), None, until, Publish.NEWEST)
    return state


def answers(state: State) -> list[dict[str, Any]]:
    return values_of(PLAN, advance(state, None, asked(ASKED), 40).answers)


def expected() -> list[dict[str, Any]]:
    oracle = Oracle(VIEW, ROWS)
    return [oracle.values(key, at) for key, at in ASKED]


def edited(data: bytes, **header: Any) -> bytes:
    """Return the same bytes with other entries in the header."""
    at = len(MAGIC) + 2
    length = int.from_bytes(data[at : at + 8], "little")
    content = {**json.loads(data[at + 8 : at + 8 + length]), **header}
    text = json.dumps(content, sort_keys=True).encode("ascii")
    return data[:at] + len(text).to_bytes(8, "little") + text + data[at + 8 + length :]


def test_a_state_comes_back_and_goes_on() -> None:
    state = state_of(ROWS)
    again = decode(encode(state), PLAN)
    assert encode(again) == encode(state)
    assert again.frontier_us == 15
    assert again.counters == state.counters
    assert answers(again) == answers(state) == expected()


def test_an_empty_state_comes_back() -> None:
    empty = State(PLAN)
    again = decode(encode(empty), PLAN)
    assert (again.n_entities, again.frontier_us) == (0, empty.frontier_us)


def test_canonical_bytes_do_not_know_the_order_of_arrival() -> None:
    slowly = State(PLAN)
    for row in reversed(ROWS):
        advance(slowly, prepared(PLAN, VIEW, [row]), None, max(slowly.frontier_us, row["at"] + 1))
    advance(slowly, None, None, 15)
    assert canonical_bytes(slowly) == canonical_bytes(state_of(ROWS))
    assert canonical_bytes(slowly) != canonical_bytes(state_of(ROWS[1:]))


# Written by version 1: the entities by the bytes of their keys. The code must read it as long as
# VERSION is 1. Keep this test when VERSION changes: then the code reads version 1 or refuses it by
# name.
GOLDEN_BODY = """
78dae36380003e28cd08a599d0680634794606fc601333844e976550e2ffc98aa19f0187b9d7a2f72f3cda5f968a62cf
07697b561cf6a3bb9790bb70d98bce7ff2ebce4f9ed3aaabd0d5f3a2d12c501ae6beb4ccb4920c24f73013198e7638dc
73f23f049c3d03023c04e301c68feadff7a45e75c619147507eec833a3b90b0a1c10ee2f2a2ec1930e18b1eb87810674
015ce988109f97ccf8a432b8000ef6330c8306c052003b5aba2bc9c82c4a410a3768b2f9cf068bd7fcd22250c23c7c62
bed0e6a7771fabbddeef66bb72ed17d4f4f1443ee9f04a00114c46aa
"""
GOLDEN_HEADER = {
    "counters": {"events": 5, "expired": 0, "late": 0, "overflows": 0},
    "entities": 2,
    "frontier_us": 15,
    "key_bytes": 3,
    "publishes": True,
    "view": "user",
    "words": 128,
}


def golden() -> bytes:
    # The definition's hash depends on the version of tzdata, which may change after encoding.
    text = json.dumps({**GOLDEN_HEADER, "hash": PLAN.hash}, sort_keys=True).encode("ascii")
    body = zlib.decompress(bytes.fromhex("".join(GOLDEN_BODY.split())))
    return b"TIDEMILL-STATE\x01\x00" + len(text).to_bytes(8, "little") + text + body


def test_a_state_of_version_1_is_read() -> None:
    state = decode(golden(), PLAN)
    assert state.frontier_us == 15
    assert [state.key(i) for i in range(state.n_entities)] == ["b", "é"]
    assert answers(state) == expected()


def test_a_state_of_version_1_is_written_as_it_always_was() -> None:
    assert VERSION == 1
    assert encode(state_of(ROWS)) == golden()


@pytest.mark.parametrize("version", [0, 2, 65_535])
def test_another_version_is_refused_by_name(version: int) -> None:
    data = bytearray(encode(state_of(ROWS)))
    data[len(MAGIC) : len(MAGIC) + 2] = version.to_bytes(2, "little")
    with pytest.raises(StateVersionError, match=f"'user': the state has version {version}, this"):
        decode(bytes(data), PLAN)


def test_the_state_of_another_definition_is_refused() -> None:
    data = edited(encode(state_of(ROWS)), hash="0123456789abcdef")
    with pytest.raises(StateMismatch, match="made for definition 0123456789abcdef of view 'user'"):
        decode(data, PLAN)


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_state_that_is_cut_short_is_refused(cut: int) -> None:
    data = encode(state_of(ROWS))
    with pytest.raises(StateError, match=f"has {len(data) - cut} bytes, its header says"):
        decode(data[:-cut], PLAN)


def test_a_state_with_more_behind_it_is_refused() -> None:
    with pytest.raises(StateError, match="cut short or damaged"):
        decode(encode(state_of(ROWS)) + b"\0", PLAN)


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(StateError, match="these 7 bytes are not a state"):
        decode(b"PARQUET", PLAN)
    with pytest.raises(StateError, match="header is broken"):
        decode(MAGIC + (1).to_bytes(2, "little") + (4).to_bytes(8, "little") + b"{no}", PLAN)


def test_states_do_not_share_memory() -> None:
    data = encode(state_of(ROWS))
    one, other = decode(data, PLAN), decode(data, PLAN)
    advance(one, prepared(PLAN, VIEW, [{**ROWS[0], "at": 16, "id": "late"}]), None, 20)
    assert encode(other) == data
    assert np.array_equal(other.entities[: other.n_entities], decode(data, PLAN).entities[:2])
