"""Serving: the feature stores, their registration with Feast, and models.

A package imports only packages after it in this list: feast_plugins; registry; online, offline and
bundles (which do not import each other); models and stores; files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidemill.serving.bundles.beam_handler import bundle_handler
    from tidemill.serving.models.handler import SplitRejected, TensorFlowModelHandler

__all__ = ["SplitRejected", "TensorFlowModelHandler", "bundle_handler"]

_MODULES = {
    "SplitRejected": "tidemill.serving.models.handler",
    "TensorFlowModelHandler": "tidemill.serving.models.handler",
    "bundle_handler": "tidemill.serving.bundles.beam_handler",
}


def __getattr__(name: str) -> Any:
    # Beam takes seconds to import, and most of serving has no use for it.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
