"""A SavedModel of your own in Beam's `RunInference`: ``python -m tidemill.examples.run_inference``.

The model turns a text into a price, and throws on a text that is no number: that row is rejected.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference

from tidemill.serving import SplitRejected, TensorFlowModelHandler


def save_model(folder: Path) -> None:
    """Save the model, as any training would."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "amount")])
    def price(amount: Any) -> dict[str, Any]:
        return {"price": tf.strings.to_number(amount) * 1.5}

    module = tf.Module()
    module.price = price
    tf.saved_model.save(module, str(folder), signatures={"serving_default": price})


def main() -> None:
    """Score a batch; print what comes out."""
    batch = pa.RecordBatch.from_pydict({"id": ["a", "b", "c"], "amount": ["2", "two", "4"]})
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_model(model)
        with beam.Pipeline() as pipeline:
            scored, rejected = (
                pipeline
                | beam.Create([batch])
                | RunInference(TensorFlowModelHandler(model, keep=["id"]))
                | SplitRejected()
            )
            _ = scored | "scored" >> beam.Map(lambda one: print("scored", one.to_pylist()))
            _ = rejected | "rejected" >> beam.Map(lambda one: print("rejected", one.to_pylist()))


if __name__ == "__main__":
    main()
