"""From definitions to Feast objects: entities, feature views, a feature service.

The Feast registry holds all that a reader needs:

* A Feast feature is one `FeatureColumn`; its Feast name is the part after ``view__``. Its dtype is
  ``Int64``, ``Float64`` or ``Bool``; only the model casts to float32. A timestamp is an ``Int64``
  of microseconds UTC with the tag `DTYPE_TAG`, since Feast's ``UnixTimestamp`` holds whole seconds.
* Every publication has two more Int64 fields, `VALID_UNTIL` and `REVISION`; the feature service
  leaves them out.
* Tags of a feature view hold its definition's hash, its staleness bound and how far back its
  values look (`DEFINITION_TAG`, `MAX_STALENESS_TAG`, `REACH_TAG`). Tags of a feature say whether
  its stored value is an anchor (`ANCHORED_TAG`: an event's time, from which a reader computes the
  time since), give the value of an entity without events if it is not null (`EMPTY_TAG`), and say
  which ``Int64`` is a timestamp (`DTYPE_TAG`).
* Tags also hold the view's own name, the number of the version and the definition's canonical
  form (`VIEW_TAG`, `VERSION_TAG`, `SPEC_TAG`): a version that is not promoted has another name in
  Feast (`version_name`), and a plan compares definitions part by part.
* ``owner``, ``tags`` and ``description`` of definitions are those of the Feast objects; a stream's
  are those of its views' data sources, a feature's owner is its tag `OWNER_TAG`.
* ``ttl`` is 0: windows end by themselves, and the published frontier decides whether a value is
  too old.

Feast is imported inside the functions, so importing this module is cheap.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tidemill.features.bigquery_dataset import BigQueryDataset, newest_name
from tidemill.features.definitions import (
    BOOL,
    FLOAT64,
    INT64,
    TIMESTAMP,
    Aggregation,
    Entity,
    FeatureColumn,
    FeatureView,
    Project,
)
from tidemill.features.definitions.reserved import EVENT_TIMESTAMP as EVENT_TIMESTAMP
from tidemill.features.definitions.reserved import REVISION as REVISION
from tidemill.features.definitions.reserved import VALID_UNTIL as VALID_UNTIL

if TYPE_CHECKING:
    import feast

DEFINITION_TAG: Final = "tidemill_definition"
"""The hash of the definition that a feature view was generated from."""
VIEW_TAG: Final = "tidemill_view"
"""The view that a Feast view is a version of; also the Feast view's name if it is promoted."""
VERSION_TAG: Final = "tidemill_version"
"""Which version of the view it is: 1 for the first definition that was registered."""
SPEC_TAG: Final = "tidemill_spec"
"""The canonical form of the definition, as JSON (`FeatureView.spec`)."""
PROJECT_TAG: Final = "tidemill_project"
"""The project's name; marks a Feast project whose description is that of the definitions."""
OWNER_TAG: Final = "owner"
"""The owner of a feature, which has no other place in Feast."""
ENTITY_TAG: Final = "tidemill_entity"
"""The entity's own name; the Feast entity has another name while a change is pending."""
MAX_STALENESS_TAG: Final = "tidemill_max_staleness_us"
"""How far the published frontier may lag behind a reader's clock, in microseconds."""
ANCHORED_TAG: Final = "tidemill_anchored"
"""Marks a feature whose stored value is an anchor; a reader finishes it with its ``as_of``."""
DTYPE_TAG: Final = "tidemill_dtype"
"""The dtype of a feature where it isn't that of its Feast type: ``timestamp``. Its ``Int64`` counts
microseconds from 1970-01-01T00:00:00Z."""
EMPTY_TAG: Final = "tidemill_empty"
"""The value of a feature for an entity without events, where that is a number and not null."""
REACH_TAG: Final = "tidemill_reach_us"
"""How far back a value looks at most, in microseconds: the longest window and a hop. An entity
without a publication in that time has the empty values."""


def field_name(column: FeatureColumn) -> str:
    """Return the Feast name of a feature column: what follows ``view__``.

    >>> field_name(FeatureColumn("airport__late_2", "airport", "late", 2, "int64", None, False))
    'late_2'
    """
    return column.name.removeprefix(f"{column.view}__")


def service_name(project: Project) -> str:
    """Return the name of the project's one feature service: the project's own."""
    return project.name


def version_name(view: FeatureView, version: int) -> str:
    """Return the Feast name of a version that is not the promoted one.

    No view has this name, since views' names have no double underscore. ``@`` would name one of
    Feast's own versions, and a dot would break the SQL of an offline store.
    """
    return f"{view.name}__v{version}"


def offline_path(offline_root: str, view: FeatureView) -> str:
    """Return the folder of a view's offline Parquet: one per definition, below the root."""
    # A Path object would turn gs://bucket into gs:/bucket.
    return f"{offline_root.rstrip('/')}/{view.name}/{view.hash}"


def feast_entity(entity: Entity, name: str | None = None) -> feast.Entity:
    """Generate a Feast entity.

    Args:
        entity: The entity.
        name: Its name in Feast; its own by default.
    """
    import feast

    return feast.Entity(
        name=name or entity.name,
        join_keys=[entity.join_key],
        value_type=feast.ValueType.INT64 if entity.dtype == INT64 else feast.ValueType.STRING,
        tags={**entity.tags, ENTITY_TAG: entity.name},
        owner=entity.owner,
        description=entity.description,
    )


def feast_project(project: Project) -> feast.Project:
    """Generate the Feast project: owner, tags and description of a project."""
    import feast

    return feast.Project(
        name=project.name,
        tags={**project.tags, PROJECT_TAG: project.name},
        owner=project.owner,
        description=project.description,
    )


def feast_service(
    project: Project, views: Mapping[FeatureView, feast.FeatureView], name: str | None = None
) -> feast.FeatureService:
    """Generate the feature service of a project: its feature vector, in order.

    Args:
        project: The definitions.
        views: View to the Feast view that holds its values. The service calls a Feast view by the
            view's own name, so that full feature names are ``view__feature`` for every version.
        name: Its name in Feast; `service_name` by default.
    """
    import feast

    def projected(view: FeatureView) -> feast.FeatureView:
        found = views[view]
        named = found if found.name == view.name else found.with_name(view.name)
        return named[[field_name(column) for column in view.columns]]

    return feast.FeatureService(
        name=name or service_name(project),
        features=[projected(view) for view in project.views],
        tags={**project.tags, DEFINITION_TAG: project.hash},
        owner=project.owner,
        description=project.description,
    )


def source_name(feast_name: str) -> str:
    """Return the name of the Feast data source of a Feast view."""
    return f"{feast_name}_publications"


def feast_view(
    view: FeatureView,
    entity: feast.Entity,
    offline: str | BigQueryDataset,
    *,
    name: str | None = None,
    version: int = 1,
) -> feast.FeatureView:
    """Generate the Feast view of a definition.

    Args:
        view: The view.
        entity: Its entity in Feast.
        offline: The place of the offline publications. With a path, the source is the Parquet at
            `offline_path` below it (a relative path starts at the Feast repository). With a
            BigQuery dataset, the source is the SQL view of the highest revisions.
        name: Its name in Feast; its own by default, which is the promoted version's.
        version: Which version it is.
    """
    import feast
    from feast.types import Int64, String

    key = feast.Field(
        name=view.entity.join_key, dtype=Int64 if view.entity.dtype == INT64 else String
    )
    return feast.FeatureView(
        name=name or view.name,
        entities=[entity],
        schema=[key, *_fields(view)],
        ttl=datetime.timedelta(0),
        online=True,
        source=_source(source_name(name or view.name), view, offline),
        owner=view.owner,
        description=view.description,
        tags={
            **view.tags,
            VIEW_TAG: view.name,
            VERSION_TAG: str(version),
            DEFINITION_TAG: view.hash,
            MAX_STALENESS_TAG: str(view.max_staleness_us),
            REACH_TAG: str(view.longest_window_us + view.hop_us),
            SPEC_TAG: json.dumps(view.spec(), sort_keys=True),
        },
    )


def _source(
    name: str, view: FeatureView, offline: str | BigQueryDataset
) -> feast.data_source.DataSource:
    import feast

    if isinstance(offline, BigQueryDataset):
        return feast.BigQuerySource(
            name=name,
            table=newest_name(offline, view),
            timestamp_field=EVENT_TIMESTAMP,
            **view.stream.described(),
        )
    return feast.FileSource(
        name=name,
        path=offline_path(offline, view),
        timestamp_field=EVENT_TIMESTAMP,
        **view.stream.described(),
    )


def _feature_tags(feature: Aggregation) -> dict[str, str]:
    return {**feature.tags, **({OWNER_TAG: feature.owner} if feature.owner else {})}


def _fields(view: FeatureView) -> list[feast.Field]:
    import feast
    from feast.types import Bool, Float64, Int64

    types = {INT64: Int64, FLOAT64: Float64, BOOL: Bool, TIMESTAMP: Int64}
    features = [
        feast.Field(
            name=field_name(column),
            dtype=types[column.dtype],
            description=view.features[column.feature].description,
            tags={
                **_feature_tags(view.features[column.feature]),
                **({DTYPE_TAG: TIMESTAMP} if column.dtype == TIMESTAMP else {}),
                **({ANCHORED_TAG: "true"} if column.anchored else {}),
                **({} if column.empty is None else {EMPTY_TAG: str(column.empty)}),
            },
        )
        for column in view.columns
    ]
    return [
        *features,
        feast.Field(
            name=VALID_UNTIL,
            dtype=Int64,
            description="The values hold before this instant (microseconds, UTC).",
        ),
        feast.Field(
            name=REVISION,
            dtype=Int64,
            description="The number of events applied to the entity in this view.",
        ),
    ]
