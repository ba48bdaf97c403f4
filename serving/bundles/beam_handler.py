"""A bundle's model, or its transform alone, in Beam's `RunInference`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.features.definitions import ARROW_TYPES
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
    kinds = {one.name: ARROW_TYPES[one.dtype] for one in found.inputs}
    zeros = {
        name: pa.array([""] if kind == pa.string() else pa.array([0]).cast(kind), kind)
        for name, kind in kinds.items()
    }
    return TensorFlowModelHandler(
        found.model_directory,
        signature,
        **{
            "feed": ColumnFeed(Layout.of(found.inputs)),
            "warm_up": pa.RecordBatch.from_pydict(zeros),
            **options,
        },
    )
