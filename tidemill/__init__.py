"""Tidemill: streaming features and inference on Apache Beam, provably equal to batch.

A project's module imports its names from here:

>>> from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count

Each name is imported at its first use, so that ``tidemill --help`` starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.features.definitions import (
        Entity,
        EventStream,
        FeatureView,
        Label,
        Project,
        Request,
        col,
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module("tidemill.features.definitions"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
