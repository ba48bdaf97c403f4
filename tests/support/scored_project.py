"""The payments of `tests.support.live_project`, scored by a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests.support.live_project import PROJECT, LiveProject

_MODEL: Final = """
def preprocess(inputs):
    import tensorflow as tf
    import tensorflow_transform as tft
    from tidemill.features.models.preprocessing import fill

    numbers = tf.stack([inputs[name] for name in sorted(inputs)], axis=1)
    return {"numbers": fill(tft.scale_to_z_score(numbers, elementwise=True), 0.0)}


def build_model(spec):
    import keras

    numbers = keras.Input((spec.numeric["numbers"],), name="numbers")
    score = keras.layers.Dense(1, activation="sigmoid")(numbers)
    model = keras.Model({"numbers": numbers}, score)
    model.compile(keras.optimizers.Adam(spec.learning_rate), "binary_crossentropy")
    return model


project = Project(
    "payments", views=[by_card], request=checks,
    label=Label(
        "dear", payments, col("amount") > 500, on={"card": "card"}, horizon="5m", recurring=True,
    ),
    preprocessing_fn=preprocess, model=build_model,
)
"""


def give_model(project: LiveProject) -> None:
    """Let a project that nothing was done with yet have a model."""
    text = PROJECT[: PROJECT.index('project = Project("payments"')]
    text = text.replace("    Entity, EventStream,", "    Entity, EventStream, Label,")
    own = 'inputs={"wanted": col("wanted")},'
    text = text.replace('Request(\n    "checks",', f'Request(\n    "checks", {own}')
    (project.folder / "project.py").write_text(text + _MODEL)
    with (project.folder / "tidemill.yaml").open("a") as file:
        file.write("training: {epochs: 1, seeds: 1, seed: 1, batch_size: 32}\n")


def train_another(project: LiveProject, seed: int) -> str:
    """Train with a seed; return the version of the bundle, which is live then."""
    yaml = project.folder / "tidemill.yaml"
    yaml.write_text(re.sub(r"\bseed: \d+", f"seed: {seed}", yaml.read_text()))
    project.run("train")
    return Path(project.folder, "run/bundles/current").read_text().strip()
