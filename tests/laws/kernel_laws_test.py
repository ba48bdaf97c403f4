"""The kernel's laws over random definitions, events and requests (DESIGN: laws 1 to 5).

Aggregations are found by reflection, so every registered aggregation is tested here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import strategies
from tests.support.driver import (
    Asked,
    Row,
    asked,
    counting,
    prepared,
    run_all,
    sorted_rows,
    time_of,
    values_of,
)
from tidemill import FeatureView
from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import REGISTRY
from tidemill.features.kernel.advance import Publish, Step, advance, advance_steps
from tidemill.features.kernel.encoding import canonical_bytes, decode, encode
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import COUNTS_FROM
from tidemill.features.kernel.tiles.state import State
from tidemill.features.oracle.values import Oracle

LAW = settings(
    # Fewer where the two examples of docs/aggregations.md are alone (tests/docs).
    max_examples=min(150, 30 * len(REGISTRY)),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[FeatureView, list[Row], list[Asked]]:
    view = draw(strategies.views())
    rows = draw(strategies.events(view))
    requests = draw(strategies.requests(view, rows))
    return view, list(rows), list(requests)


def _until(view: FeatureView, rows: Sequence[Row], requests: Sequence[Asked]) -> int:
    times = [time_of(view, row) for row in rows] + [time for _, time in requests]
    return max(times, default=TIME_MIN) + 1


def _same(found: Any, expected: Any) -> bool:
    return repr(found) == repr(expected)


@LAW
@given(cases())
def test_batch_equals_the_oracle(case: tuple[FeatureView, list[Row], list[Asked]]) -> None:
    view, rows, requests = case
    _, advanced, plan = run_all(view, rows, requests)
    oracle = Oracle(view, rows)
    for (key, time), found in zip(requests, values_of(plan, advanced.answers), strict=True):
        assert _same(found, oracle.values(key, time)), (key, time)


@LAW
@given(cases(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_however_a_sorted_log_is_sliced_answers_and_state_are_the_same(
    case: tuple[FeatureView, list[Row], list[Asked]], slices: int, chance: random.Random
) -> None:
    view, rows, requests = case
    whole, advanced, plan = run_all(view, rows, requests)
    until = _until(view, rows, requests)
    rows = [dict(t) for t in {repr(sorted(r.items())): tuple(r.items()) for r in rows}.values()]
    instants = sorted({time_of(view, row) for row in rows} | {time for _, time in requests})
    cuts = sorted(chance.sample(instants, min(slices, len(instants)))) if instants else []
    state = State(plan)
    answers: dict[int, Any] = {}
    lower = TIME_MIN
    for upper in [*[cut + chance.choice([0, 1]) for cut in cuts], until]:
        if upper < lower:
            continue
        events = [row for row in rows if lower <= time_of(view, row) < upper]
        numbers = [i for i, (_, time) in enumerate(requests) if lower <= time < upper]
        part = advance(
            state, prepared(plan, view, events), asked([requests[i] for i in numbers]), upper
        )
        state = decode(encode(state), plan)
        answers.update(zip(numbers, values_of(plan, part.answers), strict=True))
        lower = upper
    expected = values_of(plan, advanced.answers)
    assert _same([answers[i] for i in range(len(requests))], expected)
    assert canonical_bytes(state) == canonical_bytes(whole)


@LAW
@given(cases(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_arrival_order_with_late_events_gives_the_same_state(
    case: tuple[FeatureView, list[Row], list[Asked]], calls: int, chance: random.Random
) -> None:
    view, rows, _ = case
    plan = make_plan(view)
    until = _until(view, rows, [])
    sorted_state = State(plan)
    advance(sorted_state, prepared(plan, view, rows), None, until)
    distinct = list({repr(sorted(r.items())): r for r in rows}.values())
    chance.shuffle(distinct)
    state = State(plan)
    for call in range(calls):
        part = distinct[call::calls]
        upper = max([time_of(view, row) + 1 for row in part] + [state.frontier_us])
        advance(state, prepared(plan, view, part), None, upper, Publish.NEWEST)
        state = decode(encode(state), plan)
    advance(state, None, None, until)
    assert canonical_bytes(state) == canonical_bytes(sorted_state)


@LAW
@given(
    cases(),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
    st.sampled_from([Publish.NOTHING, Publish.EVERY, Publish.NEWEST]),
    st.booleans(),
)
def test_steps_that_are_taken_at_once_are_those_of_single_calls(
    case: tuple[FeatureView, list[Row], list[Asked]],
    steps_wanted: int,
    chance: random.Random,
    publish: Publish,
    given_changes: bool,
) -> None:
    """Also with late rows, frontiers that stand still, steps without rows, and change points."""
    view, rows, requests = case
    plan = make_plan(view)
    instants = [time_of(view, row) for row in rows] + [time for _, time in requests] or [0]
    untils = sorted(
        chance.choice(instants) + chance.choice([0, 1]) for _ in range(steps_wanted - 1)
    )
    untils.append(_until(view, rows, requests))
    distinct = list({repr(sorted(row.items())): row for row in rows}.values())
    steps = [
        Step(
            prepared(plan, view, [distinct[n] for n in events]),
            asked([requests[n] for n in asking]),
            until,
        )
        for events, asking, until in zip(
            _spread([time_of(view, row) + 1 for row in distinct], untils, chance),
            _spread([time for _, time in requests], untils, chance),
            untils,
            strict=True,
        )
    ]
    if given_changes:
        befores = [TIME_MIN, *untils]
        steps = [
            replace(step, events=counting(step.events, before, step.until_us, chance))
            for step, before in zip(steps, befores, strict=False)
        ]
    one_by_one, at_once = State(plan), State(plan)
    expected = [
        advance(one_by_one, step.events, step.requests, step.until_us, publish) for step in steps
    ]
    found = advance_steps(at_once, steps, publish)
    for one, other in zip(expected, found, strict=True):
        assert one.answers.equals(other.answers)
        assert sorted_rows(one.publications) == sorted_rows(other.publications)
        assert one.counters == other.counters
    assert at_once.counters == one_by_one.counters
    assert canonical_bytes(at_once) == canonical_bytes(one_by_one)


@LAW
@given(cases(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_an_event_counts_from_its_change_point(
    case: tuple[FeatureView, list[Row], list[Asked]], calls: int, chance: random.Random
) -> None:
    """An answer is that of the events whose change point it has reached."""
    view, rows, requests = case
    plan = make_plan(view)
    rows = [dict(t) for t in {repr(sorted(r.items())): tuple(r.items()) for r in rows}.values()]
    until = _until(view, rows, requests)
    instants = [time_of(view, row) for row in rows] + [time for _, time in requests] or [0]
    bounds = sorted(chance.choice(instants) + chance.choice([0, 1]) for _ in range(calls - 1))
    state, before = State(plan), TIME_MIN
    known: list[tuple[Row, int]] = []
    for upper in [*bounds, until]:
        mine = [row for row in rows if time_of(view, row) < upper and chance.random() < 0.6]
        rows = [row for row in rows if row not in mine]
        events = counting(prepared(plan, view, mine), before, upper, chance)
        known += zip(mine, events.column(COUNTS_FROM).to_pylist(), strict=True)
        asking = [one for one in requests if one[1] < upper and chance.random() < 0.5]
        answers = advance(state, events, asked(asking), upper).answers
        instants = [max(time, before) for _, time in asking]
        assert answers.column("as_of").to_pylist() == instants
        for (key, _), as_of, found in zip(asking, instants, values_of(plan, answers), strict=True):
            oracle = Oracle(view, [row for row, change in known if change <= as_of])
            assert _same(found, oracle.values(key, as_of)), (key, as_of)
        state, before = decode(encode(state), plan), upper


def _spread(needs: Sequence[int], untils: Sequence[int], chance: random.Random) -> list[list[int]]:
    """Put rows into the first step that reaches what they need, and some into a later one."""
    out: list[list[int]] = [[] for _ in untils]
    for number, need in enumerate(needs):
        first = next(step for step, until in enumerate(untils) if until >= need)
        out[chance.choice([first, first, first, chance.randrange(first, len(untils))])].append(
            number
        )
    return out


@LAW
@given(cases())
def test_every_publication_is_the_value_as_of_its_timestamp_until_the_next(
    case: tuple[FeatureView, list[Row], list[Asked]],
) -> None:
    view, rows, requests = case
    _, advanced, plan = run_all(view, rows, requests, Publish.EVERY)
    oracle = Oracle(view, rows)
    published: dict[Any, list[tuple[int, int, dict[str, Any]]]] = {}
    values = values_of(plan, advanced.publications)
    for i, found in enumerate(values):
        key = advanced.publications["key"][i].as_py()
        entity = int(key) if view.entity.dtype == "int64" else key
        at = advanced.publications["event_timestamp"][i].as_py()
        until = advanced.publications["valid_until"][i].as_py()
        expected = oracle.values(entity, at)
        for column in plan.columns:
            if column.anchored and expected[column.name] is not None:
                expected[column.name] = at - expected[column.name]
        assert _same(found, expected), (key, at)
        published.setdefault(entity, []).append((at, until, found))
    for (key, time), answer in zip(requests, values_of(plan, advanced.answers), strict=True):
        spans = [p for p in published.get(key, []) if p[0] <= time]
        if not spans:
            continue
        at, until, found = spans[-1]
        # The value has not changed since, or there would be a later publication.
        expected = dict(found)
        for column in plan.columns:
            if column.anchored and expected[column.name] is not None:
                expected[column.name] = time - expected[column.name]
        assert _same(answer, expected), (key, time, at, until)
        assert time < until or until == at


@LAW
@given(cases(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_newest_publication_is_the_value_as_of_the_frontier(
    case: tuple[FeatureView, list[Row], list[Asked]], calls: int, chance: random.Random
) -> None:
    view, rows, _ = case
    plan = make_plan(view)
    distinct = list({repr(sorted(r.items())): r for r in rows}.values())
    distinct.sort(key=lambda row: time_of(view, row))
    state = State(plan)
    store: dict[str, tuple[int, int, dict[str, Any]]] = {}
    size = -(-len(distinct) // calls) if distinct else 1
    frontiers = []
    for first in range(0, len(distinct), size):
        part = distinct[first : first + size]
        upper = max([time_of(view, row) + 1 for row in part] + [state.frontier_us])
        upper += chance.choice([0, 1, view.hop_us, view.longest_window_us])
        part_late = [row for row in part if time_of(view, row) < upper]
        advanced = advance(state, prepared(plan, view, part_late), None, upper, Publish.NEWEST)
        _store(store, advanced.publications, values_of(plan, advanced.publications))
        frontiers.append(upper)
    final = (frontiers[-1] if frontiers else 0) + 3 * view.hop_us
    advanced = advance(state, None, None, final, Publish.NEWEST)
    _store(store, advanced.publications, values_of(plan, advanced.publications))
    everything = advance(state, None, None, final, Publish.ALL)
    full: dict[str, tuple[int, int, dict[str, Any]]] = {}
    _store(full, everything.publications, values_of(plan, everything.publications))
    assert _same(store, full)
    oracle = Oracle(view, rows)
    for key, (at, _, found) in store.items():
        assert at <= final
        entity = int(key) if view.entity.dtype == "int64" else key
        expected = oracle.values(entity, final)
        for column in plan.columns:
            if column.anchored and expected[column.name] is not None:
                expected[column.name] = final - expected[column.name]
        assert _same(found, expected), (key, final)


def _store(store: dict[str, Any], batch: Any, values: list[dict[str, Any]]) -> None:
    for i, found in enumerate(values):
        order = (batch["event_timestamp"][i].as_py(), batch["revision"][i].as_py())
        key = batch["key"][i].as_py()
        if key in store:
            assert order >= store[key][:2]
        store[key] = (*order, found)
