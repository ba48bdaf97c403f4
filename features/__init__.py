"""Tidemill's definitions: what a user writes in their own module.

>>> from features import Entity, EventStream, FeatureView, Project, Request, col, count
"""

from features.aggregations import (
    count,
    distinct_count,
    first,
    last,
    last_k,
    max,
    mean,
    min,
    quantile,
    rate,
    std,
    sum,
    time_since_last,
    variance,
)
from features.definitions import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
)
from features.expressions import col

__all__ = [
    "Entity",
    "EventStream",
    "FeatureView",
    "Label",
    "Project",
    "Request",
    "col",
    "count",
    "distinct_count",
    "first",
    "last",
    "last_k",
    "max",
    "mean",
    "min",
    "quantile",
    "rate",
    "std",
    "sum",
    "time_since_last",
    "variance",
]
