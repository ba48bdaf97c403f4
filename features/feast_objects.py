"""From definitions to Feast objects: entities, feature views, a feature service.

What stands where, so that the Feast registry alone tells a reader all it needs:

* A Feast feature is one `FeatureColumn`; its Feast name is the part after ``view__``. Its dtype is
  ``Int64`` or ``Float64``, never less: the one cast to float32 is inside the model.
* Every publication carries two more Int64 fields, `VALID_UNTIL` and `REVISION`; the feature
  service leaves them out.
* Tags of a feature view carry its definition's hash and its staleness bound (`DEFINITION_TAG`,
  `MAX_STALENESS_TAG`); a feature whose stored value is an anchor says so (`ANCHORED_TAG`).
* ``ttl`` stays 0: windows end by themselves, and age is judged by the published frontier.

Feast is imported inside the functions, so that the names here cost nothing to import.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from features.definitions import FeatureColumn, FeatureView, Project
from features.errors import DefinitionError
from features.expressions import INT64

if TYPE_CHECKING:
    import feast

EVENT_TIMESTAMP: Final = "event_timestamp"
"""The column of the instant from which a publication holds."""
VALID_UNTIL: Final = "tidemill_valid_until"
"""The Int64 field (microseconds) of the instant up to which a publication holds."""
REVISION: Final = "tidemill_revision"
"""The Int64 field that counts the events applied to the entity in the view."""

DEFINITION_TAG: Final = "tidemill_definition"
"""The hash of the definition that a feature view was generated from."""
MAX_STALENESS_TAG: Final = "tidemill_max_staleness_us"
"""How far the published frontier may lag behind a reader's clock, in microseconds."""
ANCHORED_TAG: Final = "tidemill_anchored"
"""Marks a feature whose stored value is an anchor, to be finished with the reader's ``as_of``."""


@dataclass(frozen=True)
class FeastObjects:
    """What a project becomes in Feast.

    Attributes:
        entities: One per entity, in the order of the views that use them.
        feature_views: One per feature view.
        feature_service: All features of the project, in the order of its feature vector.
    """

    entities: tuple[feast.Entity, ...]
    feature_views: tuple[feast.FeatureView, ...]
    feature_service: feast.FeatureService

    @property
    def all(self) -> list[Any]:
        """Everything, in the form that ``FeatureStore.apply`` takes."""
        return [*self.entities, *self.feature_views, self.feature_service]


def field_name(column: FeatureColumn) -> str:
    """Return the Feast name of a feature column: what follows ``view__``.

    >>> field_name(FeatureColumn("airport__late_2", "airport", "late", 2, "int64", None, False))
    'late_2'
    """
    return column.name.removeprefix(f"{column.view}__")


def service_name(project: Project) -> str:
    """Return the name of the project's one feature service: the project's own."""
    return project.name


def offline_path(offline_root: str, view: FeatureView) -> str:
    """Return where a view's offline Parquet stands: one directory a view below the root."""
    return str(PurePath(offline_root) / view.name)


def feast_objects(project: Project, offline_root: str) -> FeastObjects:
    """Generate the Feast objects of a project.

    Args:
        project: The definitions.
        offline_root: Where the offline publications stand; a view's source is the Parquet below
            it at `offline_path`. Feast takes a relative one from its repository's path.

    Returns:
        Entities, feature views and the feature service, ready for ``FeatureStore.apply``.

    Raises:
        DefinitionError: A feature has the name of the view's join key, or of a column that every
            publication carries.
    """
    import feast

    entities = {
        view.entity.name: feast.Entity(
            name=view.entity.name,
            join_keys=[view.entity.join_key],
            value_type=feast.ValueType.INT64
            if view.entity.dtype == INT64
            else feast.ValueType.STRING,
        )
        for view in project.views
    }
    views = tuple(
        _feast_view(view, entities[view.entity.name], offline_root) for view in project.views
    )
    service = feast.FeatureService(
        name=service_name(project),
        features=[
            feast_view[[field_name(column) for column in view.columns]]
            for view, feast_view in zip(project.views, views, strict=True)
        ],
        tags={DEFINITION_TAG: project.hash},
    )
    return FeastObjects(tuple(entities.values()), views, service)


def check_field_names(view: FeatureView) -> None:
    """Check that no feature takes a name that Feast or a publication needs.

    Raises:
        DefinitionError: One does.
    """
    taken = (view.entity.join_key, EVENT_TIMESTAMP, VALID_UNTIL, REVISION)
    for column in view.columns:
        if field_name(column) in taken:
            raise DefinitionError(
                f"feature {view.name}.{column.feature}: {field_name(column)!r} is the name of "
                f"a column that every publication of the view carries ({', '.join(taken)}); "
                "rename the feature"
            )


def _feast_view(view: FeatureView, entity: feast.Entity, offline_root: str) -> feast.FeatureView:
    import feast
    from feast.types import Int64, String

    check_field_names(view)
    key = feast.Field(
        name=view.entity.join_key, dtype=Int64 if view.entity.dtype == INT64 else String
    )
    return feast.FeatureView(
        name=view.name,
        entities=[entity],
        schema=[key, *_fields(view.columns)],
        ttl=datetime.timedelta(0),
        online=True,
        source=feast.FileSource(
            name=f"{view.name}_publications",
            path=offline_path(offline_root, view),
            timestamp_field=EVENT_TIMESTAMP,
        ),
        tags={DEFINITION_TAG: view.hash, MAX_STALENESS_TAG: str(view.max_staleness_us)},
    )


def _fields(columns: Sequence[FeatureColumn]) -> list[feast.Field]:
    import feast
    from feast.types import Float64, Int64

    features = [
        feast.Field(
            name=field_name(column),
            dtype=Int64 if column.dtype == INT64 else Float64,
            tags={ANCHORED_TAG: "true"} if column.anchored else {},
        )
        for column in columns
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
