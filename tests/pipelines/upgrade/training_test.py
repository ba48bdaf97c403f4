"""A source and a request grow, and an input has another formula: models of both versions score.

The bundle of the first version was trained before; that of the second one from the rows of both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.grown_shop import AFTER, ASKED, ASKED_AFTER, ASKED_BEFORE, DISCOUNT, AskedShop
from tidemill import Project, col
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import BundleError, StateMismatch
from tidemill.features.models.preprocessing import fill
from tidemill.pipelines.config.configuration import Configuration, Splits, Training
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.training.train import train
from tidemill.pipelines.upgrade.upgrade import upgrade
from tidemill.pipelines.verify.explain import explain
from tidemill.pipelines.verify.lineage import lineage
from tidemill.pipelines.verify.served import read_predictions
from tidemill.pipelines.verify.verify import verify


def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf
    import tensorflow_transform as tft

    numbers = tf.stack([fill(inputs[name], 0.0) for name in sorted(inputs)], axis=1)
    return {"numbers": tft.scale_to_z_score(numbers, elementwise=True)}


def build_model(spec: Any) -> Any:
    import keras

    numbers = keras.Input((spec.numeric["numbers"],), name="numbers")
    score = keras.layers.Dense(1, activation="sigmoid")(numbers)
    model = keras.Model({"numbers": numbers}, score)
    model.compile(keras.optimizers.Adam(spec.learning_rate), "binary_crossentropy")
    return model


def with_model(project: Project) -> Project:
    return replace(project, preprocessing_fn=preprocess, model=build_model)


FIRST = with_model(ASKED)
INPUTS = {**ASKED_BEFORE.inputs, **DISCOUNT}
SECOND_ONE = with_model(replace(AFTER, request=replace(ASKED_AFTER, inputs=INPUTS)))
OTHER_FORMULA = with_model(
    replace(
        AFTER, request=replace(ASKED_AFTER, inputs={**INPUTS, "wanted": col("wanted") * 2.0 + 1.0})
    )
)


class ScoredShop(AskedShop):
    """A shop whose answers have scores, and whose payments grow too."""

    def config(self, **changes: Any) -> Configuration:
        splits = Splits(self.begin_us + 30 * MINUTE, self.until_us, 1 << 60)
        training = Training(epochs=1, batch_size=16, seeds=1)
        return super().config(**{"training": training, "splits": splits, **changes})

    def _some(self, at_us: int) -> list[tuple[str, dict[str, Any]]]:
        return [
            (name, self._of_version(row) if name == "payments" else row)
            for name, row in super()._some(at_us)
        ]


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def proven(shop: ScoredShop) -> dict[str, Any]:
    found = verify(shop.config(), QuietProgress(), sample=10)
    assert found["mismatches"] == 0, str(found["first_mismatches"])
    assert found["scores"] > 5
    assert found["training_rows"] > 0
    return found


def predictions(shop: ScoredShop) -> list[dict[str, Any]]:
    folder, project = shop.current.stream_folder, shop.project
    found: list[dict[str, Any]] = read_predictions(folder, project).to_pylist()
    return found


def test_models_of_both_versions_score_and_are_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = ScoredShop.of_now(tmp_path / "shop", monkeypatch, ago_us=HOUR, project=FIRST)
    backfill(shop.config(), QuietProgress(), publish=True)
    first = train(shop.config(), QuietProgress())["bundle"]
    shop.send(shop.until_us, steps=24, every_us=30 * SECOND)
    shop.stream(monkeypatch)
    assert proven(shop)["predictions"] > 5

    shop.project = SECOND_ONE
    with pytest.raises((BundleError, StateMismatch), match="other definitions"):
        upgrade(shop.config(), QuietProgress())
    begin_us, shop.until_us = shop.until_us, shop.read_until()
    backfill(shop.config(), QuietProgress())
    second = train(shop.config(), QuietProgress())["bundle"]
    assert first != second
    assert upgrade(shop.config(), QuietProgress())["upgraded"] == 1
    shop.senders = (1, 2)
    shop.send(begin_us + 20 * MINUTE, steps=30, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    found = proven(shop)
    assert {row["bundle_version"] for row in predictions(shop)} == {second}
    assert found["predictions"] > 5

    # Another formula of an input: what the model before was given is proven by its formula.
    shop.project = OTHER_FORMULA
    shop.until_us = shop.read_until()
    backfill(shop.config(), QuietProgress())
    third = train(shop.config(), QuietProgress())["bundle"]
    assert upgrade(shop.config(), QuietProgress())["views"] == dict.fromkeys(
        ("by_card", "by_shop", "by_tip"), "kept"
    )
    shop.send(begin_us + 40 * MINUTE, steps=20, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    found = proven(shop)
    of_second = {(one["stream"], one["why"]): one["predictions"] for one in found["earlier"]}
    assert of_second[2, ""] > 5
    rows = predictions(shop)
    assert {row["bundle_version"] for row in rows} == {third}
    explained = explain(shop.config(), rows[-1]["request_id"])
    assert {value.verdict for value in explained.values} == {"equal"}
    for version in (first, second, third):
        assert "CHANGED" not in str(lineage(shop.config().root, f"bundles/{version}"))
