"""What a feature's value is, by example: computed by hand, one rule at a time.

These examples are the specification that the oracle is held to, as the kernel is held to the
oracle.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
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
from tidemill.features.contract import MINUTE, SECOND
from tidemill.features.definitions import REGISTRY, Aggregation
from tidemill.features.errors import DefinitionError, InputError
from tidemill.features.oracle.values import RULES, Oracle

SCHEMA = {
    "at": "timestamp",
    "id": "string",
    "key": "string",
    "x": "float64",
    "n": "int64",
    "ok": "bool",
    "text": "string",
}
GREATEST = 1.7976931348623157e308


def view(schema: Mapping[str, str] = SCHEMA, **features: Aggregation) -> FeatureView:
    stream = EventStream("events", schema=schema, event_time="at", event_id="id")
    entity = Entity("thing", join_key="key", dtype=schema["key"])
    return FeatureView("view", entity=entity, stream=stream, hop="1m", features=features)


def event(at_us: int, id: str = "e", key: str = "a", **columns: Any) -> dict[str, Any]:
    return dict.fromkeys(SCHEMA, None) | {"at": at_us, "id": id, "key": key} | columns


def value(feature: Aggregation, *rows: Mapping[str, Any], as_of_us: int = 5 * MINUTE) -> Any:
    (found,) = Oracle(view(f=feature), rows).values("a", as_of_us).values()
    return found


def of_values(feature: Aggregation, column: str, *values: Any) -> Any:
    """The feature over one event per value, a second apart, in that order."""
    rows = [event(n * SECOND, id=f"{n:04}", **{column: v}) for n, v in enumerate(values)]
    return value(feature, *rows)


class TestWindow:
    def test_event_at_request_time_is_not_seen(self) -> None:
        assert value(count(over="5m"), event(SECOND), as_of_us=SECOND) == 0

    def test_event_counts_one_microsecond_later(self) -> None:
        assert value(count(over="5m"), event(SECOND), as_of_us=SECOND + 1) == 1

    @pytest.mark.parametrize(
        ("as_of_us", "expected"),
        [
            (5 * MINUTE, 2),  # on the grid: exactly five minutes of history
            (6 * MINUTE - 1, 2),  # the tail stands still until the next boundary ...
            (6 * MINUTE, 1),  # ... and drops the whole first hop there
            (7 * MINUTE, 0),
        ],
    )
    def test_tail_moves_on_the_hop_grid(self, as_of_us: int, expected: int) -> None:
        rows = event(0), event(MINUTE + 1)
        assert value(count(over="5m"), *rows, as_of_us=as_of_us) == expected

    def test_hops_before_the_epoch_are_on_the_same_grid(self) -> None:
        rows = event(-MINUTE), event(-MINUTE - 1)
        # Five minutes before 4m00s - 1us is -1m00s - 1us, whose hop begins at -2m.
        assert value(count(over="5m"), *rows, as_of_us=4 * MINUTE - 1) == 2
        assert value(count(over="5m"), *rows, as_of_us=4 * MINUTE) == 1

    def test_features_of_one_view_have_their_own_windows(self) -> None:
        oracle = Oracle(view(short=count(over="1m"), long=count(over="5m")), [event(0)])
        assert oracle.values("a", 2 * MINUTE) == {"view__short": 0, "view__long": 1}

    @pytest.mark.parametrize("key", ["b", None])
    def test_unknown_and_null_keys_have_the_empty_value(self, key: str | None) -> None:
        oracle = Oracle(view(n=count(over="5m"), x=last(col("x"), over="5m")), [event(0, x=1.0)])
        assert oracle.values(key, MINUTE) == {"view__n": 0, "view__x": None}

    def test_an_event_counts_for_its_own_key_alone(self) -> None:
        assert value(count(over="5m"), event(0, key="a"), event(0, key="b")) == 1


EMPTY: dict[str, tuple[Aggregation, Any]] = {
    "count": (count(over="5m"), 0),
    "count of a column": (count(col("x"), over="5m"), 0),
    "sum of floats": (sum(col("x"), over="5m"), 0.0),
    "sum of ints": (sum(col("n"), over="5m"), 0),
    "mean": (mean(col("x"), over="5m"), None),
    "variance": (variance(col("x"), over="5m", ddof=0), None),
    "std": (std(col("x"), over="5m", ddof=0), None),
    "min": (min(col("x"), over="5m"), None),
    "max": (max(col("n"), over="5m"), None),
    "first": (first(col("x"), over="5m"), None),
    "last": (last(col("ok"), over="5m"), None),
    "last_k": (last_k(col("x"), k=1, over="5m"), None),
    "distinct_count": (distinct_count(col("text"), over="5m"), 0),
    "quantile": (quantile(col("x"), 0.5, over="5m"), None),
    "rate": (rate(col("ok"), over="5m"), None),
    "time_since_last": (time_since_last(over="5m"), None),
}


class TestEmptyAndNull:
    @pytest.mark.parametrize("name", EMPTY)
    def test_empty_window(self, name: str) -> None:
        feature, expected = EMPTY[name]
        found = value(feature)
        assert (found, type(found)) == (expected, type(expected))

    @pytest.mark.parametrize("name", [n for n in EMPTY if n not in ("count", "time_since_last")])
    def test_only_nulls_are_an_empty_window(self, name: str) -> None:
        feature, expected = EMPTY[name]
        found = value(feature, event(0), event(1))
        assert (found, type(found)) == (expected, type(expected))

    def test_every_registered_aggregation_has_a_rule_and_an_empty_example(self) -> None:
        assert set(RULES) == set(REGISTRY) == {feature.name for feature, _ in EMPTY.values()}

    def test_count_of_a_column_skips_nulls(self) -> None:
        assert of_values(count(col("x"), over="5m"), "x", 1.0, None, 2.0) == 2
        assert of_values(count(over="5m"), "x", 1.0, None, 2.0) == 3

    def test_first_and_last_skip_nulls(self) -> None:
        assert of_values(first(col("x"), over="5m"), "x", None, 1.0, 2.0, None) == 1.0
        assert of_values(last(col("x"), over="5m"), "x", None, 1.0, 2.0, None) == 2.0

    def test_where_takes_only_rows_where_it_is_true(self) -> None:
        rows = [event(0, ok=True), event(1, ok=False), event(2, ok=None)]
        assert value(count(over="5m", where=col("ok")), *rows) == 1
        assert value(count(over="5m", where=~col("ok")), *rows) == 1

    def test_rate_counts_neither_null_conditions_nor_rows_that_where_leaves_out(self) -> None:
        assert of_values(rate(col("x") > 1, over="5m"), "x", 2.0, 0.0, 0.5, None) == 1 / 3
        rows = [event(0, x=2.0, ok=True), event(1, x=0.0, ok=True), event(2, x=0.0, ok=None)]
        assert value(rate(col("x") > 1, over="5m", where=col("ok")), *rows) == 0.5

    def test_an_expression_that_is_not_representable_is_null(self) -> None:
        rows = [event(0, x=1.0, n=0), event(1, x=1.0, n=4)]
        assert value(sum(col("x") / col("n"), over="5m"), *rows) == 0.25


class TestOrder:
    def test_the_later_event_is_last_however_it_came(self) -> None:
        rows = event(2, x=2.0), event(1, x=1.0)
        assert value(last(col("x"), over="5m"), *rows) == 2.0
        assert value(first(col("x"), over="5m"), *rows) == 1.0

    def test_equal_times_go_by_the_utf8_bytes_of_the_id(self) -> None:
        # By UTF-16 code units, or by a locale, these two would change places.
        rows = event(1, id="𐀀", x=2.0), event(1, id="￿", x=1.0)
        assert value(last(col("x"), over="5m"), *rows) == 2.0
        rows = event(1, id="B", x=1.0), event(1, id="a", x=2.0)
        assert value(last(col("x"), over="5m"), *rows) == 2.0

    def test_an_int_id_goes_by_the_bytes_of_its_digits(self) -> None:
        definition = view(SCHEMA | {"id": "int64"}, f=last(col("x"), over="5m"))
        rows = [event(1, x=1.0) | {"id": 10}, event(1, x=2.0) | {"id": 9}]
        assert Oracle(definition, rows).values("a", MINUTE) == {"view__f": 2.0}
        rows = [event(1, x=1.0) | {"id": -1}, event(1, x=2.0) | {"id": 1}]
        assert Oracle(definition, rows).values("a", MINUTE) == {"view__f": 2.0}

    def test_one_id_at_one_time_with_two_payloads_goes_by_the_bits_of_the_value(self) -> None:
        # As unsigned ints the bits of negative numbers are the greater ones.
        for one, two in [(1.0, 2.0), (1.0, -1.0), (-1.0, -2.0)]:
            rows = event(1, x=two), event(1, x=one)
            assert value(last(col("x"), over="5m"), *rows) == two
            assert value(first(col("x"), over="5m"), *rows) == one
        rows = event(1, n=-1), event(1, n=2**63 - 1)
        assert value(last(col("n"), over="5m"), *rows) == -1

    def test_last_k_has_the_newest_first_and_null_past_the_end(self) -> None:
        rows = [event(1, x=1.0), event(2, x=None), event(3, x=3.0)]
        oracle = Oracle(view(f=last_k(col("x"), k=3, over="5m")), rows)
        expected = {"view__f_0": 3.0, "view__f_1": 1.0, "view__f_2": None}
        assert oracle.values("a", MINUTE) == expected

    def test_a_bool_comes_as_a_bool(self) -> None:
        assert of_values(last(col("ok"), over="5m"), "ok", False, True) is True
        assert of_values(min(col("ok"), over="5m"), "ok", True, False) is False
        assert of_values(max(col("ok"), over="5m"), "ok", True, False) is True

    def test_a_time_comes_as_microseconds(self) -> None:
        assert of_values(last(col("at"), over="5m"), "x", 1.0, 2.0) == SECOND


class TestDuplicates:
    def test_equal_rows_count_once(self) -> None:
        assert value(count(over="5m"), event(1, x=1.0), event(1, x=1.0)) == 1

    @pytest.mark.parametrize("other", [{"x": 2.0}, {"x": None}, {"text": ""}, {"at": 2}])
    def test_the_same_id_with_anything_else_is_another_event(self, other: dict[str, Any]) -> None:
        rows = event(1, x=1.0), event(1, x=1.0) | other
        assert value(count(over="5m"), *rows) == 2

    def test_two_payloads_of_one_id_with_equal_values_both_stand_in_last_k(self) -> None:
        rows = event(1, x=1.0, n=1), event(1, x=1.0, n=2)
        oracle = Oracle(view(f=last_k(col("x"), k=2, over="5m")), rows)
        assert oracle.values("a", MINUTE) == {"view__f_0": 1.0, "view__f_1": 1.0}

    def test_minus_zero_is_zero_and_so_a_duplicate(self) -> None:
        rows = event(1, x=0.0), event(1, x=-0.0)
        assert value(count(over="5m"), *rows) == 1
        assert math.copysign(1, value(min(col("x"), over="5m"), rows[1])) == 1


class TestNumbers:
    def test_sum_is_the_exact_sum_rounded_once(self) -> None:
        assert of_values(sum(col("x"), over="5m"), "x", 1e300, 1.0, -1e300) == 1.0
        assert of_values(sum(col("x"), over="5m"), "x", *[0.1] * 10) == 1.0
        # 2**53 + 1 lies half way and goes to even; anything more goes up.
        assert of_values(sum(col("x"), over="5m"), "x", 2.0**53, 1.0) == 2.0**53
        assert of_values(sum(col("x"), over="5m"), "x", 2.0**53, 1.0, 5e-324) == 2.0**53 + 2

    def test_overflow_is_judged_on_the_windows_total(self) -> None:
        assert of_values(sum(col("x"), over="5m"), "x", GREATEST, GREATEST) is None
        assert of_values(sum(col("x"), over="5m"), "x", GREATEST, GREATEST, -1e308) is None
        total = of_values(sum(col("x"), over="5m"), "x", GREATEST, GREATEST, -GREATEST)
        assert total == GREATEST
        # Half a last place over the greatest float rounds to infinity, less does not.
        half = 2.0**969
        assert of_values(sum(col("x"), over="5m"), "x", GREATEST, half) == GREATEST
        assert of_values(sum(col("x"), over="5m"), "x", GREATEST, half, half) is None

    def test_int_sum_is_an_int_and_null_past_64_bits(self) -> None:
        greatest = 2**63 - 1
        assert of_values(sum(col("n"), over="5m"), "n", greatest, 1) is None
        assert of_values(sum(col("n"), over="5m"), "n", greatest, 1, -1) == greatest
        assert of_values(sum(col("n"), over="5m"), "n", -greatest, -1) == -(2**63)
        assert of_values(sum(col("n"), over="5m"), "n", -greatest, -2) is None

    def test_mean_does_not_overflow_where_its_sum_would(self) -> None:
        assert of_values(mean(col("x"), over="5m"), "x", GREATEST, GREATEST) == GREATEST
        found = of_values(mean(col("n"), over="5m"), "n", 2**63 - 1, 2**63 - 1)
        assert (found, type(found)) == (2.0**63, float)

    def test_mean_that_rounds_to_zero_is_positive_zero(self) -> None:
        found = of_values(mean(col("x"), over="5m"), "x", -5e-324, 0.0)
        assert (found, math.copysign(1, found)) == (0.0, 1)

    def test_variance_by_hand(self) -> None:
        assert of_values(variance(col("x"), over="5m"), "x", 1.0, 2.0, 4.0) == 7 / 3
        assert of_values(variance(col("x"), over="5m", ddof=0), "x", 1.0, 2.0, 4.0) == 14 / 9
        assert of_values(std(col("n"), over="5m"), "n", 1, 2, 4) == math.sqrt(7 / 3)

    def test_variance_of_close_large_numbers_loses_nothing(self) -> None:
        assert of_values(variance(col("x"), over="5m"), "x", 1e15, 1e15 + 1, 1e15 + 2) == 1.0

    def test_variance_of_too_few_rows_is_null(self) -> None:
        assert of_values(variance(col("x"), over="5m"), "x", 1.0) is None
        assert of_values(std(col("x"), over="5m"), "x", 1.0) is None
        assert of_values(variance(col("x"), over="5m", ddof=0), "x", 1.0) == 0.0

    def test_variance_that_overflows_is_null_and_so_is_its_root(self) -> None:
        assert of_values(variance(col("x"), over="5m"), "x", 1e200, -1e200) is None
        assert of_values(std(col("x"), over="5m"), "x", 1e200, -1e200) is None

    def test_extremes(self) -> None:
        assert of_values(min(col("n"), over="5m"), "n", 3, -(2**63), 2**63 - 1) == -(2**63)
        assert of_values(max(col("x"), over="5m"), "x", 5e-324, -1.0, 0.0) == 5e-324

    def test_rate_is_the_rounded_share(self) -> None:
        found = of_values(rate(col("ok"), over="5m"), "ok", True, True, False)
        assert found == float(Fraction(2, 3))

    def test_time_since_last_is_measured_to_the_instant(self) -> None:
        rows = event(SECOND), event(2 * SECOND, ok=True)
        assert value(time_since_last(over="5m"), *rows, as_of_us=3 * SECOND + 7) == SECOND + 7
        assert value(time_since_last(over="5m", where=~col("ok").fill_null(False)), *rows) == (
            5 * MINUTE - SECOND
        )


class TestSketches:
    def test_distinct_count_counts_values_not_rows(self) -> None:
        assert of_values(distinct_count(col("text"), over="5m"), "text", "a", "", "a", None) == 2
        assert of_values(distinct_count(col("x"), over="5m"), "x", 0.0, -0.0, 1.0) == 2
        assert of_values(distinct_count(col("ok"), over="5m"), "ok", True, False, True) == 2

    def test_distinct_count_is_exact_up_to_256(self) -> None:
        assert of_values(distinct_count(col("n"), over="5m"), "n", *range(256)) == 256

    def test_quantile_is_that_of_the_sketch(self) -> None:
        # Ranks 0 to 3; floor(0.9 * 3) = 2 is 3.0, whose bucket [3.0, 3.015625) has this middle.
        found = of_values(quantile(col("x"), 0.9, over="5m"), "x", 4.0, 1.0, 3.0, 2.0)
        assert found == 3.0078125


class TestExplain:
    def test_explain_names_the_events_in_order(self) -> None:
        rows = [event(2, id="b"), event(2, id="a", x=1.0), event(1, id="c", x=2.0)]
        rows.append(event(9, id="not seen", x=3.0))
        found = Oracle(view(n=count(over="5m"), x=last(col("x"), over="5m")), rows).explain("a", 9)
        assert found["n"].events == ((1, "c"), (2, "a"), (2, "b"))
        assert found["n"].values == {"view__n": 3}
        assert found["x"].events == ((1, "c"), (2, "a"))
        assert found["x"].values == {"view__x": 1.0}

    def test_explain_of_last_k_has_all_its_columns(self) -> None:
        oracle = Oracle(view(f=last_k(col("n"), k=2, over="5m")), [event(1, n=5)])
        assert oracle.explain("a", 9)["f"].values == {"view__f_0": 5, "view__f_1": None}


class TestInput:
    @pytest.mark.parametrize("column", ["at", "id"])
    def test_a_row_without_time_or_id_is_refused(self, column: str) -> None:
        with pytest.raises(InputError, match=f"event 1: '{column}' is null"):
            Oracle(view(f=count(over="5m")), [event(1), event(1) | {column: None}])

    @pytest.mark.parametrize(("column", "wrong"), [("n", 1.0), ("x", "1"), ("n", True), ("x", 1)])
    def test_a_value_of_another_type_is_refused(self, column: str, wrong: Any) -> None:
        with pytest.raises(InputError, match=re.escape(f"event 0: column {column!r} is ")):
            Oracle(view(f=count(over="5m")), [event(1, **{column: wrong})])

    def test_a_missing_column_is_refused(self) -> None:
        row = event(1)
        del row["text"]
        with pytest.raises(InputError, match="no column 'text'"):
            Oracle(view(f=count(over="5m")), [row])

    def test_an_aggregation_without_a_rule_is_refused_by_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(RULES, "count")
        with pytest.raises(DefinitionError, match="no rule for the aggregation 'count'"):
            value(count(over="5m"))


class TestLaws:
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_neither_order_nor_repeats_of_the_rows_change_a_value(
        self, data: st.DataObject
    ) -> None:
        definition = data.draw(strategies.views())
        rows = data.draw(strategies.events(definition))
        shuffled = data.draw(st.permutations(rows + rows[:3]))
        for key, as_of_us in data.draw(strategies.requests(definition, rows)):
            expected = Oracle(definition, rows).values(key, as_of_us)
            assert repr(Oracle(definition, shuffled).values(key, as_of_us)) == repr(expected)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_values_have_the_declared_dtype_and_are_finite(self, data: st.DataObject) -> None:
        definition = data.draw(strategies.views())
        rows = data.draw(strategies.events(definition))
        oracle = Oracle(definition, rows)
        types = {"int64": int, "float64": float, "bool": bool, "timestamp": int}
        for key, as_of_us in data.draw(strategies.requests(definition, rows)):
            found = oracle.values(key, as_of_us)
            assert list(found) == [column.name for column in definition.columns]
            for column in definition.columns:
                result = found[column.name]
                assert result is None or type(result) is types[column.dtype]
                assert result is None or math.isfinite(result)
                assert repr(result) != "-0.0"

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_only_events_that_explain_names_make_the_value(self, data: st.DataObject) -> None:
        definition = data.draw(strategies.views())
        rows = data.draw(strategies.events(definition))
        oracle = Oracle(definition, rows)
        for key, as_of_us in data.draw(strategies.requests(definition, rows)):
            for name, explanation in oracle.explain(key, as_of_us).items():
                named = set(explanation.events)
                kept = [row for row in rows if (row["at"], row["id"]) in named]
                again = Oracle(definition, kept).explain(key, as_of_us)[name]
                assert repr(again) == repr(explanation)
