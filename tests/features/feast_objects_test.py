"""The Feast objects of a project."""

from __future__ import annotations

import datetime
import json

import pytest
from feast import ValueType
from feast.types import Bool, Float64, Int64, String

from tests.support import parcels
from tests.support.feast_definitions import feast_objects
from tidemill import Entity, EventStream, FeatureView, count, last_k, mean
from tidemill.features.definitions import col
from tidemill.features.errors import DefinitionError
from tidemill.features.feast_objects import (
    ANCHORED_TAG,
    DEFINITION_TAG,
    DTYPE_TAG,
    MAX_STALENESS_TAG,
    OWNER_TAG,
    SPEC_TAG,
    VERSION_TAG,
    VIEW_TAG,
    feast_entity,
    feast_service,
    feast_view,
    version_name,
)

OBJECTS = feast_objects(parcels.PARCELS, "/somewhere/offline")


def test_every_entity_has_its_join_key_and_type() -> None:
    assert [(e.name, e.join_key, e.value_type) for e in OBJECTS.entities] == [
        ("courier", "courier", ValueType.STRING),
        ("depot", "depot", ValueType.INT64),
    ]


def test_every_feature_column_is_a_field_of_its_own_dtype() -> None:
    view = OBJECTS.feature_views[0]
    assert [(field.name, field.dtype) for field in view.features] == [
        ("scans_1d", Int64),
        ("grams_1d", Int64),
        ("metres_1d", Float64),
        ("last_metres_0", Float64),
        ("last_metres_1", Float64),
        ("idle", Int64),
        ("signed", Bool),
        ("due", Int64),
        ("tidemill_valid_until", Int64),
        ("tidemill_revision", Int64),
    ]
    assert [(field.name, field.dtype) for field in view.entity_columns] == [("courier", String)]


def test_a_tag_says_which_integer_is_a_time() -> None:
    fields = OBJECTS.feature_views[0].features
    tagged = {field.name: field.tags[DTYPE_TAG] for field in fields if DTYPE_TAG in field.tags}
    assert tagged == {"due": "timestamp"}


def test_descriptions_reach_feast() -> None:
    team = {"owner": "ann@example", "tags": {"team": "risk"}, "description": "Ours."}
    schema = {"at": "timestamp", "id": "string", "shop": "string"}
    view = FeatureView(
        "by_shop",
        Entity("shop", **team),
        EventStream("s", schema, "at", "id", **team),
        "1h",
        {"n": count(over="1d", **team)},
        **team,
    )
    entity = feast_entity(view.entity)
    made = feast_view(view, entity, "offline")
    for thing in (entity, made, made.batch_source):
        assert (thing.owner, thing.description) == ("ann@example", "Ours.")
        assert thing.tags["team"] == "risk"
    feature = made.features[0]
    assert (feature.description, feature.tags["team"]) == ("Ours.", "risk")
    assert feature.tags[OWNER_TAG] == "ann@example"


def test_ttl_stays_zero_and_age_stands_in_tags() -> None:
    view = OBJECTS.feature_views[0]
    assert view.ttl == datetime.timedelta(0)
    assert view.tags[DEFINITION_TAG] == parcels.BY_COURIER.hash
    assert view.tags[MAX_STALENESS_TAG] == str(10 * 60 * 1_000_000)


def test_anchored_feature_says_so() -> None:
    anchored = [f.name for f in OBJECTS.feature_views[0].features if ANCHORED_TAG in f.tags]
    assert anchored == ["idle"]


def test_service_holds_the_features_without_the_technical_fields() -> None:
    service = OBJECTS.feature_service
    assert service.name == "parcels"
    assert {p.name: [f.name for f in p.features] for p in service.feature_view_projections} == {
        "by_courier": [
            "scans_1d",
            "grams_1d",
            "metres_1d",
            "last_metres_0",
            "last_metres_1",
            "idle",
            "signed",
            "due",
        ],
        "by_depot": ["scans_1d"],
    }


def test_offline_source_is_a_directory_of_the_definition() -> None:
    sources = [view.batch_source for view in OBJECTS.feature_views]
    assert [source.path for source in sources] == [
        f"/somewhere/offline/by_courier/{parcels.BY_COURIER.hash}",
        f"/somewhere/offline/by_depot/{parcels.BY_DEPOT.hash}",
    ]
    assert {source.timestamp_field for source in sources} == {"event_timestamp"}


def test_version_stands_under_a_name_of_its_own_and_says_what_it_is() -> None:
    by_depot = parcels.BY_DEPOT
    version = feast_view(
        by_depot,
        feast_entity(by_depot.entity),
        "offline",
        name=version_name(by_depot, 2),
        version=2,
    )
    assert (version.name, version.batch_source.name) == (
        "by_depot__v2",
        "by_depot__v2_publications",
    )
    assert (version.tags[VIEW_TAG], version.tags[VERSION_TAG]) == ("by_depot", "2")
    assert version.tags[DEFINITION_TAG] == by_depot.hash
    assert json.loads(version.tags[SPEC_TAG]) == by_depot.spec()
    service = feast_service(parcels.project(by_depot), {by_depot: version})
    (projection,) = service.feature_view_projections
    assert (projection.name, projection.name_to_use()) == ("by_depot__v2", "by_depot")


@pytest.mark.parametrize("name", ["courier", "event_timestamp", "tidemill_revision"])
def test_feature_named_like_a_column_of_every_publication_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match=rf"feature clash\.{name}: .*rename it"):
        FeatureView(
            "clash", parcels.COURIER, parcels.SCANS, hop="1h", features={name: count(over="1h")}
        )


def test_element_of_last_k_named_like_the_join_key_is_refused() -> None:
    entity = Entity("who", join_key="metres_0", dtype="string")
    with pytest.raises(DefinitionError, match="'metres_0' is the name of a column"):
        FeatureView(
            "clash",
            entity,
            parcels.SCANS,
            hop="1h",
            key="courier",
            features={
                "metres": last_k(col("metres"), over="1h", k=2),
                "mean": mean(col("metres"), over="1h"),
            },
        )
