"""Plans: what differs, said in the words of the definitions."""

from __future__ import annotations

import json

import pytest

from tests.support import parcels
from tests.support.parcels import BY_COURIER, BY_DEPOT
from tidemill import Entity, EventStream, FeatureView, col, count, last_k, max, mean, quantile, sum
from tidemill.features.definitions import Aggregation
from tidemill.features.feast_objects import field_name
from tidemill.serving.online.rows import Frontiers
from tidemill.serving.registry.definition_changes import (
    Change,
    FeatureChange,
    feature_changes,
    view_changes,
)
from tidemill.serving.registry.plan import Plan, Role, make_plan, service_parts
from tidemill.serving.registry.state import Registered, RegisteredEntity, RegisteredView, space_name


def depot(
    hop: str = "1h",
    max_staleness: str = "15m",
    entity: Entity = parcels.DEPOT,
    stream: EventStream = parcels.SCANS,
    **features: Aggregation,
) -> FeatureView:
    return FeatureView(
        "by_depot",
        entity,
        stream,
        hop=hop,
        key="depot",
        max_staleness=max_staleness,
        features=features or {"scans_1d": count(over="1d")},
    )


def version(view: FeatureView, number: int = 1, *, promoted: bool = True) -> RegisteredView:
    """A version as a registry gives it back: through JSON."""
    types = {"int64": "Int64", "float64": "Float64"}
    return RegisteredView(
        feast_name=view.name if promoted else f"{view.name}__v{number}",
        view=view.name,
        version=number,
        definition=view.hash,
        spec=json.loads(json.dumps(view.spec())),
        max_staleness_us=view.max_staleness_us,
        dtypes={field_name(column): types[column.dtype] for column in view.columns},
    )


def registered(*views: FeatureView, pending: tuple[RegisteredView, ...] = ()) -> Registered:
    project = parcels.project(*views)
    return Registered(
        views=(*(version(view) for view in project.views), *pending),
        entities={
            entity.name: RegisteredEntity(entity.name, entity.name, entity.join_key, entity.dtype)
            for entity in (view.entity for view in project.views)
        },
        services={"parcels": service_parts(project)},
    )


def plan(*views: FeatureView, before: Registered, **spaces: Frontiers) -> Plan:
    return make_plan(parcels.project(*views), before, spaces)


def differences(old: dict[str, Aggregation], new: dict[str, Aggregation]) -> dict[str, list[str]]:
    changes = feature_changes(version(depot(**old)).spec or {}, version(depot(**old)).dtypes,
                              depot(**new))  # fmt: skip
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


def test_same_definitions_need_nothing() -> None:
    made = plan(before=registered())
    assert [view.change for view in made.views] == [Change.UNCHANGED] * 2
    assert (made.service, made.to_promote, made.superseded) == (Change.UNCHANGED, (), ())


def test_empty_registry_promotes_everything_at_once() -> None:
    made = plan(before=Registered())
    assert [(view.change, view.feast_name, view.version) for view in made.views] == [
        (Change.ADDED, "by_courier", 1),
        (Change.ADDED, "by_depot", 1),
    ]
    assert made.to_promote == ()


def test_changed_view_is_the_next_version() -> None:
    changed = depot(scans_1d=count(over="2d"))
    made = plan(BY_COURIER, changed, before=registered())
    view = made.views[1]
    assert (view.change, view.version, view.feast_name, view.is_registered) == (
        Change.CHANGED,
        2,
        "by_depot__v2",
        False,
    )
    assert view.features == (FeatureChange("scans_1d", Change.CHANGED, ("window 1d -> 2d",)),)
    assert made.service_details == ("other definitions of by_depot",)
    assert made.to_promote == ("by_depot", "feature service parcels")


def test_pending_version_keeps_its_number_and_another_one_supersedes_it() -> None:
    second, third = depot(scans_1d=count(over="2d")), depot(scans_1d=count(over="3d"))
    before = registered(pending=(version(second, 2, promoted=False),))
    again = plan(BY_COURIER, second, before=before)
    assert (again.views[1].version, again.views[1].is_registered) == (2, True)
    assert again.superseded == ()
    other = plan(BY_COURIER, third, before=before)
    assert other.views[1].version == 3
    assert [v.feast_name for v in other.superseded] == ["by_depot__v2"]
    assert "by_depot__v2" in other.to_promote


def test_staleness_alone_makes_no_version() -> None:
    made = plan(BY_COURIER, depot(max_staleness="5m"), before=registered())
    view = made.views[1]
    assert view.change is Change.UNCHANGED
    assert view.details == ("max_staleness 15m -> 5m, at once: it judges reads, not values",)


def test_features_more_and_less_are_counted_for_the_service() -> None:
    two = depot(a=count(over="1d"), b=count(over="2d"))
    one = depot(b=count(over="2d"), c=count(over="3d"), d=count(over="4d"))
    made = plan(one, before=registered(two))
    assert made.service_details == (
        "features added: 2",
        "features removed: 1",
        "other definitions of by_depot",
    )


def test_key_spaces_say_who_refers_to_them() -> None:
    second, third = depot(scans_1d=count(over="2d")), depot(scans_1d=count(over="3d"))
    before = registered(pending=(version(second, 2, promoted=False),))
    names = {
        "first": space_name("parcels", "by_depot", BY_DEPOT.hash),
        "courier": space_name("parcels", "by_courier", BY_COURIER.hash),
        "second": space_name("parcels", "by_depot", second.hash),
        "third": space_name("parcels", "by_depot", third.hash),
        "orphan": space_name("parcels", "by_depot", "0123456789abcdef"),
    }
    spaces = {names[key]: Frontiers(1, {0: 5}) for key in ("first", "courier", "second", "orphan")}
    made = make_plan(parcels.project(third), before, spaces)
    roles = {space.name: (space.role, space.exists) for space in made.spaces or ()}
    assert roles == {
        names["first"]: (Role.PROMOTED, True),
        names["courier"]: (Role.REMOVED, True),
        names["second"]: (Role.SUPERSEDED, True),
        names["third"]: (Role.PENDING, False),
        names["orphan"]: (Role.ORPHANED, True),
    }


@pytest.mark.parametrize(
    ("frontiers", "said"),
    [
        (None, "nothing was published to it"),
        (Frontiers(0, {}), "nothing was published to it"),
        (Frontiers(3, {1: 10}), "no frontier of shard 0, 2 of 3"),
        (Frontiers(2, {0: 10, 1: 10}), None),
    ],
)
def test_what_a_key_space_lacks_keeps_it_from_being_promoted(
    frontiers: Frontiers | None, said: str | None
) -> None:
    changed = depot(scans_1d=count(over="2d"))
    name = space_name("parcels", "by_depot", changed.hash)
    spaces = {} if frontiers is None else {name: frontiers}
    made = make_plan(parcels.project(BY_COURIER, changed), registered(), spaces)
    expected = () if said is None else (f"view 'by_depot', key space {name}: {said}",)
    assert made.unfilled == expected


def test_view_that_is_served_already_need_not_be_filled() -> None:
    made = plan(BY_COURIER, before=registered())
    assert made.to_promote == ("by_depot", "feature service parcels")
    assert made.unfilled == ()


def test_store_that_keeps_rows_by_name_cannot_promote_another_definition() -> None:
    changed = depot(scans_1d=count(over="2d"))
    made = make_plan(parcels.project(BY_COURIER, changed), registered(), None)
    assert made.spaces is None
    (said,) = made.unfilled
    assert "rows of the old definition would answer for the new one" in said
