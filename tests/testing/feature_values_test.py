"""`features_at`: the kernel's values of a few rows, without an engine, a store or a folder."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import strategies
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
    col,
    count,
    first,
    last,
    last_k,
    max,
    mean,
    min,
    sum,
    time_since_last,
)
from tidemill.features.contract import (
    EARLIEST_EVENT,
    HOUR,
    LATEST_EVENT,
    MINUTE,
    SECOND,
    moment_of,
    time_of,
)
from tidemill.features.errors import DefinitionError, InputError, ProofError
from tidemill.features.kernel.columns import plain_array
from tidemill.features.oracle import values as oracle_values
from tidemill.testing import features_at, rejected_rows

ORDERS = EventStream(
    "orders",
    event_time="at",
    event_id="id",
    schema={
        "at": "timestamp",
        "id": "string",
        "shop": "string",
        "till": "int64",
        "price": "float64",
    },
)
REFUNDS = EventStream(
    "refunds",
    event_time="at",
    event_id="id",
    schema={"at": "timestamp", "id": "string", "order": "string", "till": "int64", "kept": "bool"},
)
SHOP = FeatureView(
    "shop",
    entity=Entity("shop"),
    stream=ORDERS,
    hop="5m",
    features={
        "orders": count(over="30m"),
        "spent": sum(col("price"), over="30m"),
        "newest": last(col("price"), over="30m"),
        "since": time_since_last(over="30m"),
    },
)
TILL = FeatureView(
    "till",
    entity=Entity("till", dtype="int64"),
    stream=REFUNDS,
    hop="5m",
    features={"refunds": count(over="1h")},
)
BASKETS = Request(
    "baskets",
    request_time="at",
    request_id="id",
    schema={"at": "timestamp", "id": "int64", "shop": "string", "till": "int64", "order": "string"},
    inputs={"hour": col("at").hour_of_day("UTC")},
)
PROJECT = Project(
    "shops",
    request=BASKETS,
    views=[SHOP, TILL],
    label=Label("kept", stream=REFUNDS, value=col("kept"), on={"order": "order"}, horizon="1d"),
)


def order(at: Any, id: str = "o1", shop: str | None = "a", price: Any = 1.0) -> dict[str, Any]:
    return {"at": at, "id": id, "shop": shop, "price": price}


def clock(hour: int, minute: int = 0) -> datetime.datetime:
    return datetime.datetime(2026, 1, 31, hour, minute, tzinfo=datetime.UTC)


def us(time: datetime.datetime) -> int:
    return int(time.timestamp()) * SECOND


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist()
    return values


def test_a_feature_is_tested_in_five_lines() -> None:
    rows = [order("2026-01-31T10:00:00Z", price=2.5), order("2026-01-31T10:10:00Z", "o2")]
    found = features_at(SHOP, {"orders": rows}, at="2026-01-31T10:20:00Z")
    assert found.to_pylist() == [
        {
            "shop": "a",
            "as_of": clock(10, 20),
            "shop__orders": 2,
            "shop__spent": 3.5,
            "shop__newest": 1.0,
            "shop__since": 10 * MINUTE,
        }
    ]
    assert found.schema.types == [
        pa.string(),
        pa.timestamp("us", tz="UTC"),
        pa.int64(),
        pa.float64(),
        pa.float64(),
        pa.int64(),
    ]


def test_bools_and_times_come_as_what_they_are_and_the_oracle_agrees() -> None:
    last_of = {"k": 2, "over": "1h"}
    view = replace(
        TILL,
        features={
            "kept": last_k(col("kept"), **last_of),
            "times": last_k(col("at"), **last_of),
            "first_kept": first(col("kept"), over="1h"),
            "first_at": first(col("at"), over="1h", where=col("kept")),
            "all_kept": min(col("kept"), over="1h"),
            "any_kept": max(col("kept"), over="1h"),
            "earliest": min(col("at"), over="1h"),
            "latest": max(col("at"), over="1h"),
        },
    )
    for begin_us in (EARLIEST_EVENT + HOUR, 0, LATEST_EVENT - HOUR):
        rows = [
            {"at": moment_of(begin_us + n), "id": f"r{n}", "order": "o", "till": 1, "kept": kept}
            for n, kept in enumerate([None, True, False])
        ]
        asked = {"at": moment_of(begin_us + 10), "keys": [1, 2], "check_with_oracle": True}
        found = features_at(view, {"refunds": rows}, **asked)
        types = [str(found.schema.field(column.name).type) for column in view.columns]
        time = "timestamp[us, tz=UTC]"
        assert types == ["bool", "bool", time, time, "bool", time, "bool", "bool", time, time]
        plain = {name: plain_array(found[name]).to_pylist() for name in found.column_names[2:]}
        first_us, last_us = begin_us, begin_us + 2
        assert [values[0] for values in plain.values()] == [
            False, True, last_us, last_us - 1, True, first_us + 1, False, True, first_us, last_us,
        ]  # fmt: skip
        assert {values[1] for values in plain.values()} == {None}
        # pandas' nanoseconds would end in the years 1677 and 2262.
        frame = found.to_pandas()
        assert time_of(frame["till__latest"][0].to_pydatetime()) == last_us
        assert pd.isna(frame["till__latest"][1])
        assert frame["till__any_kept"].tolist() == [True, None]


def test_a_row_for_each_key_and_instant_in_their_order() -> None:
    rows = [order(clock(10), "o1", "b"), order(clock(11), "o2", "a")]
    found = features_at(SHOP, {"orders": rows}, at=[clock(11, 1), clock(10, 1)])
    assert column(found, "shop") == ["a", "a", "b", "b"]
    assert column(found, "as_of") == [clock(11, 1), clock(10, 1)] * 2
    assert column(found, "shop__orders") == [1, 0, 0, 1]


def test_keys_may_be_unknown_null_and_repeated() -> None:
    keys = ["nobody", None, "a", "a"]
    found = features_at(SHOP, {"orders": [order(clock(10))]}, at=clock(10, 1), keys=keys)
    assert column(found, "shop") == keys
    assert column(found, "shop__orders") == [0, 0, 1, 1]
    assert column(found, "shop__spent") == [0.0, 0.0, 1.0, 1.0]
    assert column(found, "shop__newest") == [None, None, 1.0, 1.0]
    assert column(found, "shop__since") == [None, None, MINUTE, MINUTE]


def test_keys_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match=r"keys of entity 'shop': expected string or None"):
        features_at(SHOP, {}, at=clock(10), keys=[7])


def test_without_rows_and_without_keys_there_is_nothing_to_ask() -> None:
    found = features_at(SHOP, {"orders": []}, at=[clock(10)])
    assert found.num_rows == 0
    assert found.column_names[:3] == ["shop", "as_of", "shop__orders"]
    assert features_at(SHOP, {}, at=[], keys=["a"]).num_rows == 0


def test_without_rows_a_key_has_the_empty_values() -> None:
    (row,) = features_at(SHOP, {}, at=clock(10), keys=["a"], check_with_oracle=True).to_pylist()
    assert (row["shop__orders"], row["shop__spent"], row["shop__newest"]) == (0, 0.0, None)


def test_an_event_at_the_instant_or_after_it_is_not_seen() -> None:
    rows = [order(clock(10), "o1"), order(clock(10, 1), "o2"), order(clock(23), "o3")]
    at = [us(clock(10)), us(clock(10)) + 1, us(clock(10, 1)), us(clock(10, 1)) + 1]
    found = features_at(SHOP, {"orders": rows}, at=at, check_with_oracle=True)
    assert column(found, "shop__orders") == [0, 1, 1, 2]


def test_ties_at_equal_time_go_by_the_id() -> None:
    rows = [order(clock(10), "9", price=9.0), order(clock(10), "10", price=10.0)]
    for given_rows in (rows, rows[::-1]):
        found = features_at(SHOP, {"orders": given_rows}, at=clock(10, 1), check_with_oracle=True)
        assert column(found, "shop__newest") == [9.0]


def test_equal_rows_count_once_and_equal_ids_with_other_values_twice() -> None:
    rows = [order(clock(10)), order(clock(10)), order(clock(10), price=3.0)]
    found = features_at(SHOP, {"orders": rows}, at=clock(10, 1), check_with_oracle=True)
    assert column(found, "shop__orders") == [2]
    assert column(found, "shop__spent") == [4.0]


def _forms() -> Sequence[Any]:
    rows = [order(clock(10), "o1"), order(clock(10, 10), "o2", price=None)]
    frame = pd.DataFrame(rows).assign(till=pd.Series([1, 2], dtype="Int64"), more="ignored")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    texts = [{**row, "at": row["at"].isoformat()} for row in rows]
    numbers = [{**row, "at": us(row["at"])} for row in rows]
    return [
        pytest.param([{**row, "till": n} for n, row in enumerate(rows, 1)], id="datetimes"),
        pytest.param([{**row, "till": n} for n, row in enumerate(texts, 1)], id="texts"),
        pytest.param([{**row, "till": n} for n, row in enumerate(numbers, 1)], id="microseconds"),
        pytest.param([{**texts[0], "till": 1}, {**numbers[1], "till": "2"}], id="mixed"),
        pytest.param(frame, id="pandas"),
        pytest.param(frame.set_index("id", drop=False).rename_axis("index"), id="indexed pandas"),
        pytest.param(frame.assign(at=[us(row["at"]) for row in rows]), id="pandas microseconds"),
        pytest.param(frame.assign(at=[row["at"] for row in texts]), id="pandas texts"),
        pytest.param(table, id="table"),
        pytest.param(pa.concat_tables([table.slice(0, 1), table.slice(1)]), id="chunks"),
        pytest.param(table.to_batches()[0], id="batch"),
        pytest.param(tuple({**row, "till": np.int64(1)} for row in rows), id="numpy numbers"),
    ]


@pytest.mark.parametrize("rows", _forms())
def test_rows_come_in_many_forms(rows: Any) -> None:
    found = features_at(SHOP, {"orders": rows}, at=clock(10, 20), check_with_oracle=True)
    (row,) = found.to_pylist()
    assert (row["shop__orders"], row["shop__spent"], row["shop__newest"]) == (2, 1.0, 1.0)


@pytest.mark.parametrize(
    "at",
    [
        clock(10, 20),
        "2026-01-31T11:20:00+01:00",
        us(clock(10, 20)),
        [clock(10, 20)],
        pd.to_datetime(["2026-01-31T10:20:00Z"]),
        pa.array([clock(10, 20)]),
        np.array([us(clock(10, 20))]),
    ],
)
def test_instants_come_in_many_forms(at: Any) -> None:
    found = features_at(SHOP, {"orders": [order(clock(10))]}, at=at)
    assert column(found, "as_of") == [clock(10, 20)]


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (datetime.datetime(2026, 1, 31), "no offset from UTC"),  # noqa: DTZ001
        (["2026-01-31T10:00:00Z", "2026-01-31T10:00:00"], "no offset from UTC"),
        ("yesterday", "not of the declared dtype"),
        (2**62, "outside the years 1 to 9999"),
        (2**70, "."),
        ([None], "the time is null"),
        ([True], "not of the declared dtype"),
        ([datetime.date(2026, 1, 31)], "not of the declared dtype"),
    ],
)
def test_an_instant_that_is_none_is_refused(at: Any, why: str) -> None:
    with pytest.raises(InputError, match=rf"^instant .*{why}"):
        features_at(SHOP, {}, at=at, keys=["a"])


def test_a_naive_time_is_rejected_and_the_error_shows_reason_and_row() -> None:
    rows = [order(clock(10)), order(datetime.datetime(2026, 1, 31, 10), "o2")]  # noqa: DTZ001
    with pytest.raises(InputError, match="1 of 2 rows are rejected") as caught:
        features_at(SHOP, {"orders": rows}, at=clock(11))
    assert "row 1: naive_time: column 'at': found '2026-01-31T10:00:00'" in str(caught.value)
    assert "'id': 'o2'" in str(caught.value)


def test_many_rejected_rows_are_counted_and_the_first_are_shown() -> None:
    rows = [order(clock(10), f"o{n}", price="12,50") for n in range(9)]
    with pytest.raises(InputError, match="9 of 9 rows are rejected") as caught:
        features_at(SHOP, {"orders": rows}, at=clock(11))
    assert str(caught.value).count("wrong_type") == 5
    assert "and 4 more" in str(caught.value)


def test_rejected_rows_can_be_left_out_and_listed() -> None:
    rows = [order(clock(10)), order(clock(10), "o2", price="nan"), order(None, "o3")]
    rows += [order(clock(10), "o4", shop=None), {"at": clock(10), "shop": "a"}]
    events = {"orders": rows}
    found = features_at(SHOP, events, at=clock(10, 1), skip_rejected=True)
    assert column(found, "shop__orders") == [1]
    rejected = rejected_rows(SHOP, events)
    assert column(rejected, "source") == ["orders"] * 3
    assert column(rejected, "row") == [1, 2, 4]
    assert column(rejected, "reason") == ["nan", "null_time", "null_id"]
    assert column(rejected, "detail")[2] == "column 'id': found null, expected the id of every row"
    assert rejected_rows(SHOP, {"orders": rows[:1]}).num_rows == 0
    assert rejected_rows(SHOP, {}).column_names == ["source", "row", "reason", "detail"]


def test_an_event_without_the_key_of_a_view_counts_for_the_others_and_the_hashes_stay() -> None:
    by_till = FeatureView(
        "by_till",
        entity=Entity("till", dtype="int64"),
        stream=ORDERS,
        hop="5m",
        features={"n": count(over="1h")},
    )
    rows = [
        order(clock(10)),
        order(clock(10), "o2") | {"till": 7},
        order(clock(10), "o3", shop=None),
    ]
    events = {"orders": rows}
    alone = features_at(SHOP, events, at=clock(10, 1))
    both = Project("both", request=BASKETS, views=[SHOP, by_till])
    assert rejected_rows(both, events).num_rows == 0
    beside = features_at(both.view(SHOP.name), events, at=clock(10, 1))
    assert beside.equals(alone)
    assert column(alone, "shop__orders") == [2]
    tills = features_at(by_till, events, at=clock(10, 1))
    assert (column(tills, "till"), column(tills, "by_till__n")) == ([7], [1])


def test_a_misspelt_column_of_a_dict_is_an_error_and_of_a_table_rejects_its_rows() -> None:
    rows = [{"at": clock(10), "id": "o1", "shop": "a", "prise": 1.0}]
    with pytest.raises(InputError, match=r"row 0 has 'prise', .* did you mean 'price'"):
        features_at(SHOP, {"orders": rows}, at=clock(11))
    found = rejected_rows(SHOP, {"orders": pa.Table.from_pylist(rows)})
    assert column(found, "reason") == ["missing_column"]


def test_an_unknown_stream_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'order' is no event stream of 'shop'; did you mean 'ord"):
        features_at(SHOP, {"order": []}, at=clock(11))
    with pytest.raises(InputError, match="'basket' is no event stream of 'shops'"):
        features_at(PROJECT, {"basket": []}, requests=[])


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([order(clock(10))], "expected a dict of stream to rows, found a list"),
        ({"orders": "rows.csv"}, "found a str, expected a list of dicts"),
        ({"orders": {"at": [1]}}, "found a dict, expected a list of dicts"),
        ({"orders": [("o1", 1)]}, "row 0 is a tuple, expected a dict with the columns at, id"),
        ({"orders": [order(clock(10), "\ud800")]}, "cannot be read as Arrow columns"),
        ({"orders": pd.DataFrame({"id": ["a", 1]})}, "cannot be read as Arrow columns"),
        (
            {"orders": pa.table([["a"], ["b"]], names=["id", "id"])},
            "the input has 2 columns named 'id'",
        ),
    ],
)
def test_what_is_no_rows_is_refused(events: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        features_at(SHOP, events, at=clock(11))


def test_either_instants_or_requests_are_asked_for() -> None:
    with pytest.raises(InputError, match=r"give either at= .* or requests="):
        features_at(PROJECT, {})
    with pytest.raises(InputError, match=r"give either at= .* or requests="):
        features_at(PROJECT, {}, at=clock(10), requests=[])
    with pytest.raises(InputError, match="keys= goes with at="):
        features_at(PROJECT, {}, keys=["a"], requests=[])
    with pytest.raises(InputError, match="view 'shop' alone has no request"):
        features_at(SHOP, {}, requests=[])
    with pytest.raises(InputError, match="view 'shop' alone has no request"):
        rejected_rows(SHOP, {}, requests=[])
    with pytest.raises(InputError, match="expected a Project or a FeatureView, found 'shop'"):
        features_at("shop", {}, at=clock(10))  # type: ignore[arg-type]


def test_instants_need_one_entity() -> None:
    with pytest.raises(InputError, match=r"have the entities shop, till.*project\.view\('shop'\)"):
        features_at(PROJECT, {}, at=clock(10))
    one = Project("one", request=BASKETS, views=[SHOP])
    assert features_at(one, {"orders": [order(clock(10))]}, at=clock(10, 1)).equals(
        features_at(SHOP, {"orders": [order(clock(10))]}, at=clock(10, 1))
    )


def test_a_join_key_named_like_the_instants_is_refused() -> None:
    stream = EventStream(
        "odd", schema={"at": "timestamp", "id": "string", "as_of": "string"},
        event_time="at", event_id="id",
    )  # fmt: skip
    view = FeatureView(
        "odd", entity=Entity("thing", join_key="as_of"), stream=stream, hop="1h",
        features={"n": count(over="1h")},
    )  # fmt: skip
    with pytest.raises(InputError, match="its join key is called 'as_of'"):
        features_at(view, {}, at=clock(10))


def basket(at: Any, id: int, order: str | None = None, **keys: Any) -> dict[str, Any]:
    return {"at": at, "id": id, "order": order, **keys}


def refund(at: Any, id: str, order: str, kept: bool | None = True, till: int = 1) -> dict[str, Any]:
    return {"at": at, "id": id, "order": order, "till": till, "kept": kept}


def test_requests_get_the_columns_of_the_training_table() -> None:
    orders = [order(clock(10), "o1") | {"till": 1}]
    refunds = [refund(clock(10, 30), "r1", "x", till=7), refund(clock(12), "r2", "o1", kept=False)]
    asked = [basket(clock(11), 2, "o1", shop="a", till=7), basket(clock(10, 5), 1, shop="a")]
    found = features_at(
        PROJECT, {"orders": orders, "refunds": refunds}, requests=asked, check_with_oracle=True
    )
    assert found.column_names == [
        "request_id",
        "request_time",
        "hour",
        "shop__orders",
        "shop__spent",
        "shop__newest",
        "shop__since",
        "till__refunds",
        "label",
        "label_time",
    ]
    assert column(found, "request_id") == ["2", "1"]
    assert column(found, "request_time") == [clock(11), clock(10, 5)]
    assert column(found, "hour") == [11, 10]
    assert column(found, "shop__orders") == [0, 1]
    assert column(found, "till__refunds") == [1, 0]
    assert column(found, "label") == [0.0, None]
    assert column(found, "label_time") == [clock(12), None]


def test_requests_without_events_are_empty_and_unlabelled() -> None:
    found = features_at(PROJECT, {}, requests=[basket(clock(11), 1)])
    (row,) = found.to_pylist()
    assert (row["shop__orders"], row["shop__newest"], row["label"]) == (0, None, None)
    assert features_at(PROJECT, {}, requests=[]).num_rows == 0


def test_a_project_without_a_label_has_no_label_columns() -> None:
    project = Project("shops", request=BASKETS, views=[SHOP])
    found = features_at(project, {}, requests=[basket(clock(11), 1)])
    assert found.column_names[-1] == "shop__since"


def test_rejected_requests_are_errors_or_left_out() -> None:
    asked = [basket(clock(11), 1), basket("11:00", 2), {"at": clock(11)}]
    with pytest.raises(InputError, match="'baskets': 2 of 3 rows are rejected"):
        features_at(PROJECT, {}, requests=asked)
    found = features_at(PROJECT, {}, requests=asked, skip_rejected=True)
    assert column(found, "request_id") == ["1"]
    rejected = rejected_rows(PROJECT, {}, requests=asked)
    assert column(rejected, "source") == ["baskets", "baskets"]
    assert column(rejected, "reason") == ["wrong_type", "null_id"]


def test_a_label_that_precedes_its_request_is_refused_as_backfill_does() -> None:
    asked = [basket(clock(11), 1, "o1", shop="a")]
    refunds = [refund(clock(11), "r1", "o1")]
    with pytest.raises(InputError, match="label 'kept': 1 of its events do not come after"):
        features_at(PROJECT, {"refunds": refunds}, requests=asked)


def test_a_kernel_that_differs_from_the_oracle_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_more(_: Any, window: Any) -> list[int]:
        return [len(window.values) + 1]

    monkeypatch.setitem(oracle_values.RULES, "count", one_more)  # type: ignore[arg-type]
    events = {"orders": [order(clock(10), f"o{n}", f"s{n:02}") for n in range(12)]}
    assert features_at(SHOP, events, at=clock(10, 1)).num_rows == 12
    with pytest.raises(ProofError, match="view 'shop': 12 values differ") as caught:
        features_at(SHOP, events, at=clock(10, 1), check_with_oracle=True)
    assert (
        "shop__orders of 's00' as of 2026-01-31T10:01:00Z: the kernel gives 1, the oracle 2"
    ) in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_an_aggregation_without_a_rule_in_the_oracle_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(oracle_values.RULES, "last")  # type: ignore[misc]
    with pytest.raises(DefinitionError, match="no rule for the aggregation 'last'"):
        features_at(SHOP, {}, at=clock(10), keys=["a"], check_with_oracle=True)


@settings(max_examples=40)
@given(st.data())
def test_any_view_over_any_rows_equals_the_oracle_in_any_order(data: st.DataObject) -> None:
    view = data.draw(strategies.views(max_features=3, max_hops=6))
    rows = data.draw(strategies.events(view, max_size=12))
    times = sorted({row[strategies.EVENT_TIME] for row in rows})
    at = [time + step for time in times[:3] for step in (0, 1, view.hop_us)]
    table = strategies.to_batch(view.stream.schema, rows)
    found = features_at(view, {"events": table}, at=at, check_with_oracle=True)
    shuffled = data.draw(st.permutations(rows))
    again = strategies.to_batch(view.stream.schema, [*shuffled, *shuffled[:3]])
    assert features_at(view, {"events": again}, at=at).equals(found)


def test_a_hundred_thousand_rows_are_no_burden() -> None:
    start = us(clock(10))
    rows = [order(start + n, f"o{n}", f"s{n % 100}") for n in range(100_000)]
    found = features_at(SHOP, {"orders": rows}, at=[start + HOUR // 4, start + HOUR])
    assert found.num_rows == 200
    assert column(found, "shop__orders") == [1_000, 0] * 100


def test_other_means_of_numbers_are_the_same_to_the_bit() -> None:
    view = FeatureView(
        "shop", entity=Entity("shop"), stream=ORDERS, hop="5m",
        features={"m": mean(col("price"), over="30m")},
    )  # fmt: skip
    prices = [0.1, 1e16, -1e16, 3]
    rows = [order(clock(10), f"o{n}", price=price) for n, price in enumerate(prices)]
    frame = pd.DataFrame(rows).assign(till=pd.Series([1] * 4, dtype="Int64"))
    one, other = (features_at(view, {"orders": r}, at=clock(10, 1)) for r in (rows, frame))
    assert one.equals(other)
    assert column(one, "shop__m") == [0.775]


def test_no_engine_no_store_and_no_model_are_loaded() -> None:
    program = """
import sys
from tidemill import Entity, EventStream, FeatureView, count
from tidemill.testing import features_at
clicks = EventStream("clicks", event_time="at", event_id="id",
                     schema={"at": "timestamp", "id": "string", "user": "string"})
view = FeatureView("user", entity=Entity("user"), stream=clicks, hop="5m",
                   features={"n": count(over="1h")})
rows = [{"at": "2026-01-31T10:00:00Z", "id": "c1", "user": "ann"}]
found = features_at(view, {"clicks": rows}, at="2026-01-31T10:30:00Z", check_with_oracle=True)
assert found["user__n"].to_pylist() == [1]
heavy = {"apache_beam", "tensorflow", "tensorflow_transform", "keras", "feast", "duckdb", "redis"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout == "[]\n"
