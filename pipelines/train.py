"""Train: the training table to a bundle, with the configuration's splits and seeds."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from features.errors import BundleError
from pipelines.configuration import Configuration
from pipelines.progress import Progress, Stage
from pipelines.training import TrainingPlan, train_bundle

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
        stages: dict[str, tuple[Stage, int]] = {}

        def on_step(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = (stack.enter_context(progress.stage(stage, total, "steps")), 0)
            shown, before = stages[stage]
            shown.expect(total)
            shown.advance(done - before)
            stages[stage] = (shown, done)

        bundle = train_bundle(
            config.project,
            config.root / "features",
            plan,
            work=config.root / "scratch",
            bundles=config.root / "bundles",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            on_step=on_step,
        )
    pointer = config.root / "bundles" / CURRENT
    unfinished = pointer.with_suffix(".unfinished")
    unfinished.write_text(bundle.version + "\n")
    unfinished.replace(pointer)
    return {"bundle": bundle.version, "evaluation": bundle.evaluation}
