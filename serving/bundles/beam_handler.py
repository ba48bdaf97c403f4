"""A bundle's model, or its transform alone, in Beam's `RunInference`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.serving.bundles.blocks import ColumnFeed, Layout
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.saved_model import SCORE
from tidemill.serving.models.handler import TensorFlowModelHandler


def bundle_handler(
    bundle: Path | str, signature: str = SCORE, **options: Any
) -> TensorFlowModelHandler:
    """Return a handler that gives a bundle columns, as the features have them.

    Args:
        bundle: The bundle's folder, on a disk that the workers see.
        signature: ``serving_default`` returns the column ``score``; ``transform`` returns what
            tf.Transform's graph makes of the inputs: float32, in lists, and int64.
        options: As for `TensorFlowModelHandler`.

    Returns:
        A handler whose batches have every model input by name, int64, float64, bool or string;
        nulls are values.

    Raises:
        BundleError: It is no bundle.
        DamagedBundle: A file of it is missing, added or changed.
    """
    found = Bundle.load(bundle)
    layout = Layout.of(found.inputs)
    of_bundle = {"feed": ColumnFeed(layout), "warm_up": layout.zeros()}
    return TensorFlowModelHandler(found.model_directory, signature, **{**of_bundle, **options})
