"""Variants of a view, and versions of them as a registry gives them back."""

from __future__ import annotations

import json

from tests.support import parcels
from tidemill import Entity, EventStream, FeatureView, count
from tidemill.features.definitions import Aggregation
from tidemill.features.feast_objects import field_name
from tidemill.serving.registry.state import RegisteredView


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
    types = {"int64": "Int64", "float64": "Float64", "bool": "Bool", "timestamp": "timestamp"}
    return RegisteredView(
        feast_name=view.name if promoted else f"{view.name}__v{number}",
        view=view.name,
        version=number,
        definition=view.hash,
        spec=json.loads(json.dumps(view.spec())),
        max_staleness_us=view.max_staleness_us,
        dtypes={field_name(column): types[column.dtype] for column in view.columns},
    )
