"""The kernel and the join of labels agree with the contract of time.

`features.contract` specifies when an event counts. The kernel computes that in compiled code, and
labels are joined in Arrow; both are compared with the functions of the contract here.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.kernel_laws_test import LAW
from tests.support.driver import asked, prepared, values_of
from tests.support.strategies import to_batch
from tidemill import Entity, EventStream, FeatureView, Label, Request, col, count
from tidemill.features.contract import (
    TIME_MAX,
    Rank,
    as_of,
    covers,
    event_change_point,
    expiry,
    hop_index,
    label_holds,
)
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.history.labels import find_labels

HOP_US = 7
WINDOWS_US = (7, 21, 35)
STREAM = EventStream(
    "clicks",
    schema={"at": "timestamp", "id": "int64", "user": "string", "late": "float64"},
    event_time="at",
    event_id="id",
)
VIEW = FeatureView(
    "clicks",
    entity=Entity("user", dtype="string"),
    stream=STREAM,
    hop=f"{HOP_US}us",
    features={f"in_{window}": count(over=f"{window}us") for window in WINDOWS_US},
)
HORIZON_US = 10
REQUEST = Request(
    "asked",
    schema={"at": "timestamp", "id": "int64", "user": "string"},
    request_time="at",
    request_id="id",
)
LABEL = Label("late", STREAM, col("late") > 0, on={"user": "user"}, horizon=f"{HORIZON_US}us")

times = st.integers(-60, 60)


@dataclass(frozen=True)
class Applied:
    """An event, and the frontier at which it was applied."""

    time: int
    frontier: int

    @property
    def change(self) -> int:
        return event_change_point(self.time, self.frontier)

    def expires(self, window_us: int) -> int:
        return expiry(hop_index(self.time, HOP_US), window_us, HOP_US)


calls = st.lists(st.tuples(st.lists(times, max_size=6), st.lists(times, max_size=6)), max_size=4)
"""Per call, the times of events and of requests."""


@LAW
@given(calls)
def test_the_kernel_counts_and_publishes_by_the_contract(
    calls: list[tuple[list[int], list[int]]],
) -> None:
    plan = make_plan(VIEW)
    state = State(plan)
    events: list[Applied] = []
    for number, (event_times, request_times) in enumerate(calls):
        since = state.frontier_us
        until = max([since, *(t + 1 for t in event_times), *request_times, -60])
        rows = [
            {"at": t, "id": 100 * number + i, "user": "ann", "late": None}
            for i, t in enumerate(event_times)
        ]
        advanced = advance(
            state,
            prepared(plan, VIEW, rows),
            asked([("ann", t) for t in request_times]),
            until,
            Publish.EVERY,
        )
        events += [Applied(t, since) for t in event_times]
        for time, instant, found in zip(
            request_times,
            advanced.answers["as_of"].to_pylist(),
            values_of(plan, advanced.answers),
            strict=True,
        ):
            assert instant == as_of(time, since)
            assert list(found.values()) == [_counted(events, instant, w) for w in WINDOWS_US]
        published = advanced.publications
        at = published["event_timestamp"].to_pylist()
        changes = {event.change for event in events[len(events) - len(event_times) :]}
        boundaries = {
            event.expires(window)
            for event in events
            for window in WINDOWS_US
            if event.change < event.expires(WINDOWS_US[-1])
        }
        assert at == sorted(changes | {end for end in boundaries if since < end <= until})
        for instant, valid_until, found in zip(
            at, published["valid_until"].to_pylist(), values_of(plan, published), strict=True
        ):
            assert list(found.values()) == [_counted(events, instant, w) for w in WINDOWS_US]
            ends = [
                event.expires(window)
                for event in events
                for window in WINDOWS_US
                if event.change <= instant < event.expires(window)
            ]
            assert valid_until == min(ends, default=TIME_MAX)


def _counted(events: list[Applied], instant: int, window_us: int) -> int:
    """Count the events that a window covers at the instant of a request."""
    now = (instant, Rank.REQUEST)
    counted = 0
    for event in events:
        seen = (event.time, Rank.EVENT) < now < (event.expires(window_us), Rank.HOP_BOUNDARY)
        assert seen == covers(event.time, instant, window_us, HOP_US)
        counted += seen and event.change <= instant
    return counted


@given(st.lists(times, min_size=1, max_size=5), times)
def test_labels_are_joined_by_the_contract(label_times: list[int], request_time: int) -> None:
    known = [{"at": t, "id": i, "user": "ann", "late": 1.0} for i, t in enumerate(label_times)]
    found = find_labels(
        LABEL,
        REQUEST,
        pa.Table.from_batches(
            [to_batch(REQUEST.schema, [{"at": request_time, "id": 1, "user": "ann"}])]
        ),
        pa.Table.from_batches([to_batch(STREAM.schema, known)]),
    )
    holding = [t for t in label_times if label_holds(request_time, t, HORIZON_US)]
    assert found.times.cast(pa.int64()).to_pylist() == [min(holding, default=None)]
