"""Models of TensorFlow: SavedModels that are called with Arrow batches, and their place in Beam.

Any SavedModel will do, not only those of a bundle: `signature` reads what one of its signatures
takes and gives, `feed` makes tensors of columns, `outputs` makes columns of tensors, `calls` finds
the rows that a call fails for, `saved_model` calls it in few shapes, and `handler` is Beam's frame
around it. TensorFlow is imported when a model is loaded, and Beam with `handler`.
"""

from __future__ import annotations

from tidemill.serving.models.buckets import BUCKETS
from tidemill.serving.models.feed import Rejection
from tidemill.serving.models.saved_model import SERVING, Limits, Outcome, SavedModel
from tidemill.serving.models.signature import Signature

__all__ = ["BUCKETS", "SERVING", "Limits", "Outcome", "Rejection", "SavedModel", "Signature"]
