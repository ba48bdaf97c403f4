"""Sliding windows give the values of whole windows, bit for bit, at a cost linear in the rows."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import strategies
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    col,
    count,
    distinct_count,
    first,
    last,
    last_k,
    max,
    mean,
    min,
    quantile,
    rate,
    std,
    sum,
    time_since_last,
    variance,
)
from tidemill.features.contract import HOUR, MINUTE
from tidemill.features.definitions import REGISTRY
from tidemill.features.oracle.sliding import SLIDING, Sliding
from tidemill.features.oracle.values import RULES, Oracle

EVENTS = EventStream(
    "events",
    schema={
        "at": "timestamp",
        "id": "string",
        "key": "string",
        "x": "float64",
        "n": "int64",
        "ok": "bool",
        "text": "string",
    },
    event_time="at",
    event_id="id",
)
VIEW = FeatureView(
    "view",
    entity=Entity("key"),
    stream=EVENTS,
    hop="1m",
    features={
        f"{name}_{over}": aggregation
        for over in ("1h", "6h")
        for name, aggregation in {
            "count": count(over=over, where=col("n") > 0),
            "sum_x": sum(col("x"), over=over),
            "sum_n": sum(col("n"), over=over),
            "mean_x": mean(col("x"), over=over),
            "variance_x": variance(col("x"), over=over),
            "std_n": std(col("n"), over=over, ddof=0),
            "min_x": min(col("x"), over=over),
            "max_n": max(col("n"), over=over),
            "first_x": first(col("x"), over=over),
            "last_ok": last(col("ok"), over=over),
            "last_k_n": last_k(col("n"), k=3, over=over),
            "texts": distinct_count(col("text"), over=over),
            "numbers": distinct_count(col("n"), over=over),
            "p90": quantile(col("x"), 0.9, over=over),
            "rate": rate(col("ok"), over=over),
            "since": time_since_last(over=over),
        }.items()
    },
)


def random_rows(chance: random.Random, rows: int) -> list[dict[str, Any]]:
    """Rows of one key over a day: rows of one instant, values of all sizes, nulls, repeats."""

    def maybe(value: Any) -> Any:
        return None if chance.random() < 0.1 else value

    found: list[dict[str, Any]] = [
        {
            "at": chance.randrange(24 * 60) * MINUTE + chance.choice([0, 0, 1, MINUTE - 1]),
            "id": f"e{number}",
            "key": "a",
            "x": maybe(chance.choice([1.0, -1.0]) * 2.0 ** chance.randrange(-60, 60)),
            "n": maybe(chance.randrange(-(2**61), 2**61)),
            "ok": maybe(chance.random() < 0.4),
            "text": maybe(f"text {chance.randrange(rows)}"),
        }
        for number in range(rows)
    ]
    found += chance.sample(found, rows // 20)
    chance.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_many_rows_in_a_window_that_slides(seed: int) -> None:
    """Windows of up to 1,000 rows: distinct counts are estimates."""
    chance = random.Random(seed)
    oracle = Oracle(VIEW, random_rows(chance, 3_000))
    instants = [chance.randrange(-HOUR, 32 * HOUR) for _ in range(60)]
    instants += [chance.choice(instants) for _ in range(5)]
    found = oracle.values_at("a", instants)
    assert list(map(repr, found)) == [repr(oracle.values("a", at)) for at in instants]
    assert any(values["view__texts_6h"] > 400 for values in found)  # type: ignore[operator]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_definition_and_any_rows(data: st.DataObject) -> None:
    view = data.draw(strategies.views())
    rows = data.draw(strategies.events(view))
    requests = data.draw(strategies.requests(view, rows))
    oracle = Oracle(view, rows)
    by_key: dict[Any, list[int]] = {}
    for key, at in requests:
        by_key.setdefault(key, []).append(at)
    for key, instants in by_key.items():
        expected = [oracle.values(key, at) for at in instants]
        assert list(map(repr, oracle.values_at(key, instants))) == list(map(repr, expected))


def test_every_row_comes_and_goes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: Counter[str] = Counter()

    class Counted(Sliding):
        def come(self, row: int) -> None:
            moves["come"] += 1

        def go(self, row: int) -> None:
            moves["go"] += 1

        def found(self, as_of_us: int) -> list[int]:
            return [self.size]

    monkeypatch.setitem(SLIDING, "count", Counted)  # type: ignore[arg-type]
    view = FeatureView("v", Entity("key"), EVENTS, hop="1m", features={"n": count(over="6h")})
    rows = random_rows(random.Random(5), 500)
    oracle = Oracle(view, rows)
    instants = [minute * MINUTE for minute in range(0, 40 * 60, 3)]
    oracle.values_at("a", instants)
    assert moves == {"come": 500, "go": 500}


def test_an_aggregation_without_a_sliding_rule_is_computed_from_its_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oracle = Oracle(VIEW, random_rows(random.Random(9), 200))
    instants = [5 * HOUR, 2 * HOUR, 90 * HOUR]
    expected = oracle.values_at("a", instants)
    for name in list(SLIDING):
        monkeypatch.delitem(SLIDING, name)  # type: ignore[misc]
    assert oracle.values_at("a", instants) == expected


def test_all_aggregations_have_a_rule_and_ours_slide() -> None:
    assert set(RULES) == set(REGISTRY)
    ours = {name for name, kind in REGISTRY.items() if kind.__module__.startswith("tidemill.")}
    assert set(SLIDING) == ours


def test_an_unknown_key_has_no_rows() -> None:
    oracle = Oracle(VIEW, random_rows(random.Random(9), 20))
    for key in ("unknown", None):
        assert oracle.values_at(key, [HOUR, HOUR]) == [oracle.values(key, HOUR)] * 2
    assert oracle.values_at("a", []) == []
