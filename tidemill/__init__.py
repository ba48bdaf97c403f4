"""Tidemill: streaming features and inference on Apache Beam, provably equal to batch.

What a project's module imports stands here:

>>> from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count

Each name is loaded at its first use, so that ``tidemill --help`` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tidemill.features.definitions.aggregations import (
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
    from tidemill.features.definitions.expressions import col
    from tidemill.features.definitions.views import (
        Entity,
        EventStream,
        FeatureView,
        Label,
        Project,
        Request,
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

_MODULES: Final = ("aggregations", "expressions", "views")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            defined = importlib.import_module(f"tidemill.features.definitions.{module}")
            if name in vars(defined):
                globals()[name] = vars(defined)[name]
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
