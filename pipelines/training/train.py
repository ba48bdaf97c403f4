"""Train: the training table to a bundle, with the configuration's splits and seeds."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import BundleError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.run.progress import Progress, Stage
from tidemill.pipelines.training.training import TrainingPlan, train_bundle
from tidemill.serving.files.atomic_write import atomic_write

CURRENT: Final = "current"
"""The file in ``root/bundles`` that names the live bundle's version."""


def current_bundle(root: Path) -> Path:
    """Return the folder of the live bundle.

    Raises:
        BundleError: There is none yet.
    """
    pointer = root / "bundles" / CURRENT
    if not pointer.exists():
        raise BundleError(f"there is no live bundle in {root / 'bundles'}; run `tidemill train`")
    return root / "bundles" / pointer.read_text().strip()


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
            config.root / "features",
            plan,
            work=config.root / "scratch",
            bundles=config.root / "bundles",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            on_step=shown.step,
        )
    pointer = config.root / "bundles" / CURRENT
    with atomic_write(pointer) as unfinished:
        unfinished.write_text(bundle.version + "\n")
    return {"bundle": bundle.version, "evaluation": bundle.evaluation}
