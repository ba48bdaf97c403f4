"""A project registered with plain Feast, without versions and key spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import feast

from tidemill import Project
from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.feast_objects import feast_entity, feast_service, feast_view


@dataclass(frozen=True)
class FeastObjects:
    """The Feast objects of a project; views in the order of the feature vector."""

    entities: tuple[feast.Entity, ...]
    feature_views: tuple[feast.FeatureView, ...]
    feature_service: feast.FeatureService

    @property
    def all(self) -> list[Any]:
        """Everything, in the form that ``FeatureStore.apply`` takes."""
        return [*self.entities, *self.feature_views, self.feature_service]


def feast_objects(project: Project, offline: str | BigQueryDataset) -> FeastObjects:
    """Generate the Feast objects of a project; ``offline`` is as for `feast_view`."""
    entities = {view.entity.name: feast_entity(view.entity) for view in project.views}
    views = tuple(feast_view(view, entities[view.entity.name], offline) for view in project.views)
    service = feast_service(project, dict(zip(project.views, views, strict=True)))
    return FeastObjects(tuple(entities.values()), views, service)
