"""Bundles: transform graph, model and manifest in one directory, and the engine that calls them.

A bundle with changed bytes, or trained for other definitions, is refused with the difference.
TensorFlow is imported when a bundle is written or first called.
"""

from __future__ import annotations

from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.current import BUNDLES, current_bundle, make_current
from tidemill.serving.bundles.inference import Scorer, Stamps, shared_scorer
from tidemill.serving.bundles.saved_model import TransformGraph
from tidemill.serving.bundles.writing import write_bundle

__all__ = [
    "BUNDLES",
    "Bundle",
    "Scorer",
    "Stamps",
    "TransformGraph",
    "current_bundle",
    "make_current",
    "shared_scorer",
    "write_bundle",
]
