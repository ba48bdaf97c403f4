"""Differences between definitions, in the words of the definitions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.support import parcels
from tests.support import trained_bundle as given
from tests.support.registered import depot, version
from tidemill import Entity, EventStream, Project, col, count, last_k, max, mean, quantile, sum
from tidemill.features.definitions import Aggregation
from tidemill.serving.definition_changes import feature_changes, project_changes, view_changes


def differences(old: dict[str, Aggregation], new: dict[str, Aggregation]) -> dict[str, list[str]]:
    registered = version(depot(**old))
    changes = feature_changes(registered.spec or {}, registered.dtypes, depot(**new))
    return {f"{c.change.value} {c.feature}": list(c.details) for c in changes}


METRES, GRAMS = col("metres"), col("grams")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (count(over="1d"), count(over="2d"), ["window 1d -> 2d"]),
        (count(over="7d"), count(over="1w"), None),
        (sum(GRAMS, over="1d"), max(GRAMS, over="1d"), ["aggregation sum -> max"]),
        (
            sum(GRAMS, over="1d"),
            sum(GRAMS + 1, over="1d"),
            ["expression grams -> (grams + 1)"],
        ),
        (
            sum(GRAMS, over="1d"),
            sum(METRES, over="1d"),
            ["expression grams -> metres", "dtype int64 -> float64"],
        ),
        (
            mean(METRES, over="1d"),
            mean(METRES, over="1d", where=(GRAMS > 3) & (col("courier") == "ann")),
            ["where none -> ((grams > 3) and (courier == 'ann'))"],
        ),
        (
            mean(METRES, over="1d", where=GRAMS.is_null()),
            mean(METRES, over="1d", where=METRES < 0.5),
            ["where is_null(grams) -> (metres < 0.5)"],
        ),
        (quantile(METRES, 0.9, over="1d"), quantile(METRES, 0.99, over="1d"), ["q 0.9 -> 0.99"]),
        (last_k(METRES, over="1d", k=2), last_k(METRES, over="1d", k=3), ["k 2 -> 3"]),
        (
            last_k(GRAMS, over="1d", k=2),
            last_k(col("due"), over="1d", k=2),
            ["expression grams -> due", "dtype int64 -> timestamp"],
        ),
        (
            max(col("due"), over="1d"),
            max(col("signed"), over="1d"),
            ["expression due -> signed", "dtype timestamp -> bool"],
        ),
    ],
)
def test_changed_feature_says_what_of_it(
    old: Aggregation, new: Aggregation, said: list[str] | None
) -> None:
    expected = {} if said is None else {"changed f": said}
    assert differences({"f": old}, {"f": new}) == expected


def test_added_and_removed_features_say_what_they_are() -> None:
    old = {"a": count(over="1d"), "gone": sum(GRAMS, over="1d")}
    new = {"a": count(over="1d"), "more": mean(METRES, over="2d", where=GRAMS > 3)}
    assert differences(old, new) == {
        "added more": ["mean", "window 2d", "where (grams > 3)", "expression metres"],
        "removed gone": ["sum", "window 1d", "expression grams"],
    }


def test_moved_features_say_from_where_to_where() -> None:
    old = {"a": count(over="1d"), "b": count(over="2d"), "c": count(over="3d")}
    new = {"b": old["b"], "a": old["a"], "x": count(over="4d"), "c": old["c"]}
    assert differences(old, new) == {
        "changed b": ["position 2 -> 1"],
        "changed a": ["position 1 -> 2"],
        "added x": ["count", "window 4d"],
    }


def test_changed_view_says_what_of_it() -> None:
    stream = EventStream(
        "scans",
        {**{k: v for k, v in parcels.SCANS.schema.items() if k != "metres"}, "weight": "float64"},
        event_time="at",
        event_id="scan",
        allowed_lateness="1m",
    )
    other = Entity("depot", join_key="depot_id", dtype="int64")
    changed = depot(hop="2h", stream=stream, entity=other)
    assert view_changes(depot().spec(), changed.spec()) == (
        "entity.join_key depot -> depot_id",
        "stream.schema.metres float64 -> none",
        "stream.out_of_orderness + allowed_lateness 0us -> 1m",
        "hop 1h -> 2h",
        "stream.schema.weight none -> float64",
    )


def project_differences(project: Project) -> list[str]:
    return list(project_changes(json.loads(json.dumps(given.PROJECT.spec())), project))


def test_differences_name_what_is_new_removed_or_moved() -> None:
    features = given.DEPOT.features
    added = replace(given.DEPOT, features={**features, "more": count(over="1h")})
    assert project_differences(replace(given.PROJECT, views=(added,)))[0].startswith(
        "view 'depot', feature 'more': new, "
    )
    fewer = replace(given.DEPOT, features={"scans_1d": features["scans_1d"]})
    assert project_differences(replace(given.PROJECT, views=(fewer,)))[0].startswith(
        "view 'depot', feature 'minutes_1d': removed, "
    )
    turned = replace(
        given.DEPOT, features={name: features[name] for name in sorted(features, reverse=True)}
    )
    assert project_differences(replace(given.PROJECT, views=(turned,))) == [
        "view 'depot', feature 'scans_1d': position 2 -> 1",
        "view 'depot', feature 'minutes_1d': position 1 -> 2",
    ]
    renamed = replace(given.DEPOT, name="station")
    lines = project_differences(replace(given.PROJECT, views=(renamed,)))
    assert [line.split(":")[0] for line in lines] == ["view 'depot'", "view 'station'"]
    hop = replace(given.DEPOT, hop="30m")
    assert project_differences(replace(given.PROJECT, views=(hop,))) == [
        "view 'depot': hop 1h -> 30m"
    ]
    assert project_differences(given.PROJECT) == []


def test_order_of_views_and_model_inputs_is_a_difference() -> None:
    other = replace(given.DEPOT, name="station")
    both = replace(given.PROJECT, views=(given.DEPOT, other))
    stored = json.loads(json.dumps(both.spec()))
    turned = replace(both, views=(other, given.DEPOT))
    assert list(project_changes(stored, turned)) == [
        "order of views depot, station -> station, depot"
    ]
    inputs = given.REQUEST.inputs
    request = replace(given.REQUEST, inputs={name: inputs[name] for name in sorted(inputs)})
    (line,) = project_differences(replace(given.PROJECT, request=request))
    assert line == (
        "order of model inputs size, hour, grams, metres, fragile -> "
        "fragile, grams, hour, metres, size"
    )


def test_differences_of_request_and_label_are_named() -> None:
    inputs = {**given.REQUEST.inputs, "grams": col("grams") + 1}
    request = replace(given.REQUEST, inputs=inputs)
    assert project_differences(replace(given.PROJECT, request=request)) == [
        "request.inputs.grams grams -> (grams + 1)"
    ]
    label = given.PROJECT.label
    assert label is not None
    later = replace(given.PROJECT, label=replace(label, horizon="2h"))
    assert project_differences(later) == ["label.horizon 1h -> 2h"]
    lines = project_differences(replace(given.PROJECT, label=None))
    assert "label late -> none" in lines
    assert all(line.startswith("label") and line.endswith("-> none") for line in lines)
