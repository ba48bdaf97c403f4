"""Owner, tags and description: checked, kept, and no part of any hash."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.parcels import PARCELS
from tidemill import Entity, EventStream, FeatureView, Project, count
from tidemill.features.definitions.described import DESCRIPTIVE, Described
from tidemill.features.errors import DefinitionError, DuplicateName, WrongType

TEAM: dict[str, Any] = {"owner": "ann@example", "tags": {"team": "risk"}, "description": "Ours."}
SCHEMA = {"at": "timestamp", "id": "string", "shop": "string"}


def _view(**each: dict[str, Any]) -> FeatureView:
    stream = EventStream("s", SCHEMA, "at", "id", **each.get("stream", {}))
    entity = Entity("shop", **each.get("entity", {}))
    feature = count(over="1d", **each.get("feature", {}))
    return FeatureView("v", entity, stream, "1h", {"n": feature}, **each.get("view", {}))


@pytest.mark.parametrize("part", ["stream", "entity", "feature", "view"])
def test_description_is_no_part_of_the_hash(part: str) -> None:
    described, plain = _view(**{part: TEAM}), _view()
    assert described.hash == plain.hash
    thing: Described = {
        "stream": described.stream,
        "entity": described.entity,
        "feature": described.features["n"],
        "view": described,
    }[part]
    assert thing.described() == TEAM


def test_project_is_described_too() -> None:
    described = dataclasses.replace(PARCELS, **TEAM)
    assert (described.described(), described.hash) == (TEAM, PARCELS.hash)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"owner": None}, "entity 'shop': owner must be a text"),
        ({"description": 3}, "entity 'shop': description must be a text"),
        ({"description": "\ud800"}, "half of a surrogate pair"),
        ({"tags": ["a"]}, "tags must be a dict from text to text"),
        ({"tags": {"a": 1}}, "tags must be a dict from text to text"),
        ({"tags": {"tidemill_view": "v"}}, "tags: 'tidemill_view' starts with 'tidemill_'.*rename"),
    ],
)
def test_wrong_description_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        Entity("shop", **given)
    if isinstance(next(iter(given.values())), list):
        with pytest.raises(WrongType):
            Entity("shop", **given)


def test_tags_do_not_change_with_the_users_dict() -> None:
    tags = {"team": "risk"}
    entity = Entity("shop", tags=tags)
    tags["team"] = "other"
    assert entity.described()["tags"] == {"team": "risk"}


def test_one_entity_with_two_descriptions_is_refused() -> None:
    views = [
        FeatureView(
            name,
            Entity("shop", description=name),
            EventStream(name, SCHEMA, "at", "id"),
            "1h",
            {"n": count(over="1d")},
        )
        for name in ("a", "b")
    ]
    request = dataclasses.replace(
        PARCELS.request, schema={**PARCELS.request.schema, "shop": "string"}
    )
    with pytest.raises(DuplicateName, match="entity 'shop' is defined twice"):
        Project("p", request=request, views=views)


def test_every_definition_with_a_hash_of_its_own_names_the_same_three() -> None:
    for kind in (EventStream, Entity, FeatureView, Project, count):
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields.issuperset(DESCRIPTIVE)
