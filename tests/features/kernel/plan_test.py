"""The plan: features share partials, and a tile has each partial once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import tidemill
from tidemill import Entity, EventStream, FeatureView, col, count, last_k, mean, quantile
from tidemill.features.definitions import REGISTRY
from tidemill.features.errors import DefinitionError
from tidemill.features.kernel.plan import TILE_HEADER, make_plan
from tidemill.features.kernel.registry import FINISHES, FOLDS

STREAM = EventStream(
    "calls",
    schema={"at": "timestamp", "id": "int64", "shop": "string", "x": "float64", "n": "int64"},
    event_time="at",
    event_id="id",
)


def view_of(**aggregations: Any) -> FeatureView:
    return FeatureView(
        "shop", entity=Entity("shop"), stream=STREAM, hop="10us", features=aggregations
    )


def test_windows_of_one_aggregation_share_a_partial() -> None:
    plan = make_plan(view_of(**{f"w{n}": count(over=f"{n}us") for n in (40, 20, 80)}))
    (partial,) = plan.partials
    assert [ask.window for ask in partial.asks] == [0, 1, 2]
    assert plan.windows_us.tolist() == [20, 40, 80]
    assert plan.window_hops.tolist() == [2, 4, 8]
    # Features keep their order; each takes the ask of its window.
    assert [feature.takes for feature in plan.features] == [((0, 1),), ((0, 0),), ((0, 2),)]


def test_aggregations_that_need_the_same_share_it() -> None:
    """A mean is a sum and a count of the same rows."""
    alone = make_plan(view_of(m=mean(col("x"), over="20us")))
    both = make_plan(view_of(m=mean(col("x"), over="20us"), s=tidemill.sum(col("x"), over="40us")))
    assert len(both.partials) == len(alone.partials)
    assert both.tile_words == alone.tile_words


def test_another_expression_or_another_where_is_a_partial_of_its_own() -> None:
    plan = make_plan(
        view_of(
            a=tidemill.sum(col("x"), over="20us"),
            b=tidemill.sum(col("x") + 1.0, over="20us"),
            c=tidemill.sum(col("x"), over="20us", where=col("n") > 0),
        )
    )
    assert len(plan.partials) == 3
    assert len(plan.cells) == 2
    assert len(plan.masks) == 3


def test_quantiles_of_one_value_share_their_buckets() -> None:
    plan = make_plan(view_of(lo=quantile(col("x"), 0.1, over="20us"),
                             hi=quantile(col("x"), 0.9, over="20us")))  # fmt: skip
    (partial,) = plan.partials
    assert [ask.param for ask in partial.asks] == [0.1, 0.9]


def test_partials_stand_side_by_side_in_a_tile() -> None:
    aggregations = {
        "a": count(over="20us"),
        "b": mean(col("x"), over="20us"),
        "c": last_k(col("n"), over="20us", k=3),
    }
    plan = make_plan(view_of(**aggregations))
    at = TILE_HEADER
    for partial in plan.partials:
        assert partial.base == at
        words = partial.fold.identity
        assert tuple(plan.template[at : at + len(words)]) == words
        at += len(words)
    assert plan.tile_words == at == len(plan.template)
    assert plan.template[:TILE_HEADER].tolist() == [0] * TILE_HEADER
    assert [feature.column for feature in plan.features] == [0, 1, 2]
    assert [feature.width for feature in plan.features] == [1, 1, 3]
    assert len(plan.columns) == 5


def test_the_empty_values_are_those_of_the_definitions() -> None:
    plan = make_plan(view_of(n=count(over="20us"), m=mean(col("x"), over="20us")))
    values, nulls = plan.empty_values
    assert (values.tolist(), nulls.tolist()) == ([0, 0], [False, True])


def test_every_registered_aggregation_has_its_folds_and_its_finish() -> None:
    stream = replace(STREAM, schema={**STREAM.schema, "flag": "bool"})
    arguments: dict[str, Any] = {"q": 0.5, "k": 2}
    assert REGISTRY
    for name, kind in REGISTRY.items():
        takes = {"column": col("x"), "condition": col("flag")}
        fields = {
            field: {**arguments, **takes}[field]
            for field in kind.__dataclass_fields__
            if field in {**arguments, **takes}
        }
        aggregation = kind(over="20us", **fields)
        for partial in aggregation.partials(stream.schema, "at"):
            assert partial.fold in FOLDS, name
        assert aggregation.finish in FINISHES, name


def test_a_fold_or_a_finish_that_the_kernel_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(m=mean(col("x"), over="20us"))
    (fold, *_) = [partial.fold.name for partial in make_plan(view).partials]
    with monkeypatch.context() as patch:
        patch.delitem(FOLDS, fold)
        with pytest.raises(DefinitionError, match=f"shop.m: the kernel has no fold '{fold}'"):
            make_plan(view)
    monkeypatch.delitem(FINISHES, view.features["m"].finish)
    with pytest.raises(DefinitionError, match=r"shop\.m: the kernel has no finish"):
        make_plan(view)
