"""Plans: differences, in the words of the definitions."""

from __future__ import annotations

import pytest

from tests.support import parcels
from tests.support.parcels import BY_COURIER, BY_DEPOT
from tests.support.registered import depot, version
from tidemill import FeatureView, count
from tidemill.serving.definition_changes import (
    Change,
    FeatureChange,
)
from tidemill.serving.online.rows import Frontiers, KeySpace
from tidemill.serving.registry.plan import RegistrationPlan, Role, make_plan, service_parts
from tidemill.serving.registry.state import Registered, RegisteredEntity, RegisteredView


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


def plan(*views: FeatureView, before: Registered, **spaces: Frontiers) -> RegistrationPlan:
    return make_plan(parcels.project(*views), before, spaces)


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
        "first": KeySpace("parcels", "by_depot", BY_DEPOT.hash).name,
        "courier": KeySpace("parcels", "by_courier", BY_COURIER.hash).name,
        "second": KeySpace("parcels", "by_depot", second.hash).name,
        "third": KeySpace("parcels", "by_depot", third.hash).name,
        "orphan": KeySpace("parcels", "by_depot", "0123456789abcdef").name,
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
    name = KeySpace("parcels", "by_depot", changed.hash).name
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
