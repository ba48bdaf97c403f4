"""The state of a shard: entities are found by their keys; memory grows with the content."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.driver import asked, prepared, values_of
from tidemill import Entity, EventStream, FeatureView, count
from tidemill.features.contract import TIME_MIN
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.encoding import canonical_bytes, decode, encode
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.tiles.state import State

STREAM = EventStream(
    "clicks",
    schema={"at": "timestamp", "id": "int64", "key": "string"},
    event_time="at",
    event_id="id",
)
VIEW = FeatureView(
    "user",
    entity=Entity("user", join_key="key"),
    stream=STREAM,
    hop="10us",
    features={"clicks": count(over="20us"), "more": count(over="100us")},
)
PLAN = make_plan(VIEW)


def click(key: str, at: int, id: int = 0) -> dict[str, Any]:
    return {"at": at, "id": id, "key": key}


def apply(state: State, rows: list[dict[str, Any]], until: int) -> None:
    advance(state, prepared(PLAN, VIEW, rows), None, until)


def counts(state: State, keys: list[str | None], at: int) -> list[int]:
    advanced = advance(state, None, asked([(key, at) for key in keys]), at)
    return [row["user__clicks"] for row in values_of(PLAN, advanced.answers)]


def test_a_new_state_is_empty_and_before_all_time() -> None:
    state = State(PLAN)
    assert (state.n_entities, state.n_tiles, state.frontier_us) == (0, 0, TIME_MIN)
    assert counts(state, ["a", None], 5) == [0, 0]


def test_a_request_makes_no_entity() -> None:
    state = State(PLAN)
    counts(state, [f"k{n}" for n in range(100)], 5)
    assert state.n_entities == 0


def test_many_entities_are_all_found_again() -> None:
    """Also keys of which one is a prefix of another, and the empty key."""
    keys = ["", *(f"k{n}" for n in range(5_000)), "k" * 300, "é", "nul\0", "nul"]
    state = State(PLAN)
    for start in range(0, len(keys), 617):
        part = keys[start : start + 617]
        apply(state, [click(key, 5) for key in part], 6)
    apply(state, [click(key, 7, 1) for key in keys[::2]], 9)
    assert state.n_entities == len(keys)
    assert counts(state, [*keys], 10) == [2 if n % 2 == 0 else 1 for n in range(len(keys))]
    found = state.keys(np.arange(state.n_entities)).to_pylist()
    assert sorted(found) == sorted(keys)
    assert found == [state.key(i) for i in range(state.n_entities)]


def test_only_hops_with_events_have_tiles() -> None:
    state = State(PLAN)
    apply(state, [click("a", at) for at in (1, 2, 3, 55, 59)] + [click("b", 60)], 61)
    assert state.n_tiles == 3


def test_tiles_that_left_the_longest_window_are_gone() -> None:
    state = State(PLAN)
    apply(state, [click("a", 5), click("b", 15)], 20)
    apply(state, [], 109)
    assert state.n_tiles == 2
    apply(state, [], 110)
    assert state.n_tiles == 1
    apply(state, [], 10_000)
    assert state.n_tiles == 0
    # The state keeps the entity, because its revision must not start again.
    assert state.n_entities == 2
    advanced = advance(state, prepared(PLAN, VIEW, [click("a", 10_005, 1)]), None, 10_010,
                   Publish.NEWEST)  # fmt: skip
    assert advanced.publications.column("revision").to_pylist() == [2]


def test_memory_does_not_grow_with_time() -> None:
    """The memory of tiles that have expired is reused."""
    state = State(PLAN)
    sizes = []
    for hop in range(400):
        rows = [click(f"k{n}", hop * 10 + n % 10, hop) for n in range(20)]
        apply(state, rows, hop * 10 + 10)
        sizes.append((len(state.tiles), len(state.arena), state.nbytes))
    assert sizes[-1][:2] == sizes[100][:2]
    assert sizes[-1][2] <= sizes[100][2] * 1.1
    assert state.n_tiles <= 20 * 12


def test_an_event_older_than_every_window_is_counted_and_changes_nothing() -> None:
    state = State(PLAN)
    apply(state, [click("a", 1_000)], 1_001)
    before = counts(state, ["a"], 1_002)
    apply(state, [click("a", 5, 1)], 1_003)
    assert counts(state, ["a"], 1_004) == before
    assert (state.counters.expired, state.counters.late, state.counters.events) == (1, 1, 2)


def test_a_state_that_publishes_nothing_watches_its_longest_window_only() -> None:
    assert State(PLAN).watched_hops.tolist() == [2, 10]
    assert State(PLAN, publishes=False).watched_hops.tolist() == [10]


def test_a_state_that_does_not_publish_has_the_same_canonical_bytes() -> None:
    rows = [click("a", 5), click("b", 15), click("a", 31)]
    states = [State(PLAN), State(PLAN, publishes=False)]
    for state in states:
        apply(state, rows, 40)
    assert canonical_bytes(states[0]) == canonical_bytes(states[1])
    assert not decode(encode(states[1]), PLAN).publishes


def test_a_copy_and_its_original_go_separate_ways() -> None:
    state = State(PLAN)
    apply(state, [click("a", 5), click("b", 15)], 20)
    before, events = canonical_bytes(state), state.counters.events
    twin = state.copy()
    apply(twin, [click(f"k{n}", 25) for n in range(200)], 30)
    assert (canonical_bytes(state), state.counters.events) == (before, events)
    apply(state, [click(f"k{n}", 25) for n in range(200)], 30)
    assert canonical_bytes(state) == canonical_bytes(twin)
