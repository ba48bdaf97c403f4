"""Train: the training table to a bundle, with the configuration's splits and seeds."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress, Stage
from tidemill.pipelines.training.fit import TrainingPlan, train_bundle
from tidemill.serving.bundles.current import make_current


class _Shown:
    """Shows training's steps, one stage after the other."""

    def __init__(self, progress: Progress, stack: contextlib.ExitStack) -> None:
        self._progress = progress
        self._stack = stack
        self._name = ""
        self._done = 0
        self._stage: Stage | None = None

    def step(self, name: str, done: int, total: int) -> None:
        """Show how far a stage is; a new one ends the one before."""
        if name != self._name or self._stage is None:
            self._stack.close()
            self._stage = self._stack.enter_context(self._progress.stage(name, total, "steps"))
            self._name, self._done = name, 0
        self._stage.expect(total)
        self._stage.advance(done - self._done)
        self._done = done


def train(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Analyse, train, evaluate and write a bundle, and make it the live one.

    Returns:
        The bundle's version and its evaluation.
    """
    plan = TrainingPlan(
        train_until_us=config.splits.train_until_us,
        evaluate_until_us=config.splits.evaluate_until_us,
        epochs=config.training.epochs,
        batch_size=config.training.batch_size,
        learning_rate=config.training.learning_rate,
        seeds=config.training.seed_values,
        rate_groups=config.training.rate_groups,
    )
    with contextlib.ExitStack() as stack:
        shown = _Shown(progress, stack)
        bundle = train_bundle(
            config.project,
            config.root / paths.TRAINING_TABLE,
            plan,
            work=config.root / paths.SCRATCH,
            bundles=config.root / paths.BUNDLES,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            on_step=shown.step,
        )
    make_current(config.root, bundle.version)
    return {"bundle": bundle.version, "evaluation": bundle.evaluation}
