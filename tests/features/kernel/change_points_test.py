"""Events that count from given instants, in another order than that of their times."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.driver import Row, asked, counting, prepared, sorted_rows, values_of
from tidemill import Entity, EventStream, FeatureView, count
from tidemill.features.contract import TIME_MIN
from tidemill.features.errors import InputError
from tidemill.features.kernel.advance import Publish, Step, advance, advance_steps
from tidemill.features.kernel.encoding import canonical_bytes
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import COUNTS_FROM
from tidemill.features.kernel.tiles.state import State
from tidemill.features.oracle.values import Oracle

ORDERS = EventStream(
    "orders", schema={"at": "timestamp", "id": "string", "shop": "string"},
    event_time="at", event_id="id",
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_events_that_count_in_another_order_than_that_of_their_times(
    chance: random.Random,
) -> None:
    """Many hops, few entities: tiles are made and left out of order."""
    view = FeatureView(
        "shop", entity=Entity("shop"), stream=ORDERS, hop="10us",
        features={"n_20": count(over="20us"), "n_50": count(over="50us")},
    )  # fmt: skip
    plan, before = make_plan(view), TIME_MIN
    # The events of each step with their change points, and of all steps before it.
    known: list[list[tuple[Row, int]]] = []
    steps: list[Step] = []
    for number in range(chance.randint(1, 4)):
        until = max(before, 0) + chance.randint(1, 60)
        mine = [
            {"at": chance.randrange(until), "id": f"{number}-{place}", "shop": chance.choice("ab")}
            for place in range(chance.randint(0, 12))
        ]
        events = counting(prepared(plan, view, mine), before, until, chance)
        changes = events.column(COUNTS_FROM).to_pylist()
        known.append([*(known[-1] if known else []), *zip(mine, changes, strict=True)])
        steps.append(Step(events, asked([("a", chance.randint(0, until - 1))]), until))
        before = until
    one_by_one, at_once = State(plan), State(plan)
    single = [
        advance(one_by_one, step.events, step.requests, step.until_us, Publish.EVERY)
        for step in steps
    ]
    together = advance_steps(at_once, steps, Publish.EVERY)
    for one, other, applied in zip(single, together, known, strict=True):
        assert sorted_rows(one.publications) == sorted_rows(other.publications)
        assert one.counters == other.counters
        (answer,) = values_of(plan, one.answers)
        as_of = one.answers.column("as_of")[0].as_py()
        counted = [row for row, change in applied if change <= as_of]
        assert answer == Oracle(view, counted).values("a", as_of)
        assert values_of(plan, other.answers) == [answer]
        for row, found in zip(
            one.publications.to_pylist(), values_of(plan, one.publications), strict=True
        ):
            at = row["event_timestamp"]
            counted = [event for event, change in applied if change <= at]
            assert found == Oracle(view, counted).values(row["key"], at), row
    assert canonical_bytes(at_once) == canonical_bytes(one_by_one)


def test_a_change_point_is_checked() -> None:
    view = FeatureView(
        "shop", entity=Entity("shop"), stream=ORDERS, hop="1h", features={"n": count(over="1h")}
    )
    plan = make_plan(view)
    events = prepared(plan, view, [{"at": 10, "id": "o1", "shop": "a"}])
    for change in (10, 16):
        changed = events.append_column(COUNTS_FROM, pa.array([change], pa.int64()))
        with pytest.raises(InputError, match=f"counts from {change}, which is not between 11 and"):
            advance(State(plan), changed, None, 15)
