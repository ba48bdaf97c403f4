"""Serving: the feature stores, their registration with Feast, and models.

A package imports only packages after it in this list: feast_plugins; registry; online, offline and
bundles (which do not import each other); models and stores; files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.serving.models.handler import SplitRejected, TensorFlowModelHandler

__all__ = ["SplitRejected", "TensorFlowModelHandler"]


def __getattr__(name: str) -> Any:
    # Beam takes seconds to import, and most of serving has no use for it.
    if name in __all__:
        from tidemill.serving.models import handler

        return getattr(handler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
