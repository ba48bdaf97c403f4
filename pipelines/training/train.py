"""Training: from a table of point-in-time rows to a bundle.

Promises: the transform graph and the model see the training split only; the model in the bundle is
that of the first seed, whatever the evaluation shows; and the bundle's version is a function of the
definitions, the table's rows, the settings, the software, and the weights that TensorFlow computes
from them. On one machine it computes equal weights each time; another processor or number of cores
may round differently, and then the version differs.

The model inputs are held in memory as float32, once per variant (with and without the windowed
features).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tidemill.features.contract import SECOND, write_instant
from tidemill.features.definitions import Project
from tidemill.features.errors import DefinitionError
from tidemill.features.models.preprocessing import ModelInput, model_inputs
from tidemill.pipelines.config.configuration import Configuration, Splits, Training
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.history.build_manifest import check_training_table
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.training.evaluation import (
    Evaluation,
    Runs,
    calibration,
    measure,
    permutation_effects,
    rate_scores,
    roc_points,
)
from tidemill.pipelines.training.fit import fit, predictor
from tidemill.pipelines.training.old_bundles import remove_old_bundles
from tidemill.pipelines.training.splits import SplitTable, split_table
from tidemill.pipelines.training.statistics import input_statistics
from tidemill.pipelines.training.transform import Transformer, analyse
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.current import make_current
from tidemill.serving.bundles.writing import write_bundle

WITH_WINDOWS: Final = "with windowed features"
WITHOUT_WINDOWS: Final = "without windowed features"


def train(
    config: Configuration,
    progress: Progress,
    engine: str | None = None,
    beam_flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Analyse, train, evaluate, write a bundle, and make it the live one.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        engine: The engine of the analysis: ``fnapi``, ``prism``, ``flink`` or ``dataflow``; None
            for the default.
        beam_flags: Flags of Beam, for an engine that takes some.

    Returns:
        The bundle's version and its evaluation.

    Raises:
        UnknownEngine: The engine runs streams only.
        WrongBeamFlag: The engine does not take a flag.
        ClusterUnreachable: The engine is Flink, and its cluster takes no job.
        EngineLost: The engine has lost a job again and again.
        DefinitionError: The project has no label, preprocessing_fn or model.
    """
    check_trainable(config.project)
    jobs = BatchJobs.of(config, engine, beam_flags, progress.say)
    build = config.current.build_folder
    manifest = check_training_table(build, config.project, config.shards)
    bundle = train_bundle(
        config.project,
        build / paths.TRAINING_TABLE,
        config.splits,
        config.training,
        work=config.root / paths.SCRATCH,
        bundles=config.root / paths.BUNDLES,
        created_at=write_instant(time.time_ns() // 1_000_000_000 * SECOND),
        progress=progress,
        lineage={
            "generation": manifest.generation,
            "build": build.name,
            "training_table": manifest.training_table,
            "sources": manifest.sources,
        },
        jobs=jobs,
    )
    make_current(config.root, bundle.version)
    if config.training.keep_bundles is not None:
        for version in remove_old_bundles(config.root, config.training.keep_bundles):
            progress.say(f"bundle {version} was removed: it is old, and no prediction names it")
    return {"bundle": bundle.version, "evaluation": bundle.evaluation}


def check_trainable(project: Project) -> None:
    """Check that a project has what training needs.

    Raises:
        DefinitionError: Its label, preprocessing_fn or model is missing.
    """
    wanted = ("label", "preprocessing_fn", "model")
    lacking = [what for what in wanted if getattr(project, what) is None]
    if lacking:
        raise DefinitionError(
            f"project {project.name!r} has no {' and no '.join(lacking)}; training needs "
            f"{'one' if len(lacking) == 1 else 'them'}. Without a model `tidemill stream` streams "
            "features alone"
        )


def train_bundle(
    project: Project,
    table: Path,
    splits: Splits,
    options: Training,
    *,
    work: Path,
    bundles: Path,
    created_at: str,
    progress: Progress,
    lineage: Mapping[str, Any] | None = None,
    jobs: BatchJobs | None = None,
) -> Bundle:
    """Train, evaluate and write a bundle.

    Args:
        project: The definitions, with label, preprocessing_fn and model.
        table: The training table (a directory of Parquet files).
        splits: Where the training split and the evaluation split end.
        options: How to train.
        work: A directory for scratch files; made if it is missing.
        bundles: The directory of bundles.
        created_at: The time for the manifest.
        progress: Where progress is shown.
        lineage: From which data the table was made (JSON). It is recorded, and no part of the
            version.
        jobs: Runs the analysis; None for the default engine.

    Returns:
        The bundle, loaded; its ``evaluation`` is an `Evaluation`'s JSON.

    Raises:
        DefinitionError: Label, preprocessing_fn or model are missing or break their contract.
        InputError: The table lacks columns or rows.
    """
    check_trainable(project)
    with progress.stage("read", 1, "steps") as stage:
        rows = split_table(project, table, splits.train_until_us, splits.evaluate_until_us)
        stage.advance()
    inputs = model_inputs(project)
    request_only = model_inputs(project, only_request=True)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=work) as scratch:
        trained = _train_variant(
            project, rows, options, inputs, Path(scratch, "with"), WITH_WINDOWS, progress, jobs
        )
        baselines = [_rate_baseline(rows, options.rate_groups)]
        if request_only:
            plain = _train_variant(
                project, rows, options, request_only, Path(scratch, "without"), WITHOUT_WINDOWS,
                progress, jobs,
            )  # fmt: skip
            baselines.append(plain.runs)
        evaluation = _evaluate(rows, options.seed, inputs, trained, baselines, progress)
        plan = {
            "train_until_us": splits.train_until_us,
            "evaluate_until_us": splits.evaluate_until_us,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "seeds": options.seed_values,
            "rate_groups": options.rate_groups,
            "rows": asdict(rows.counts),
            "table": rows.digest,
        }
        with progress.stage("write", 1, "steps") as stage:
            bundle = write_bundle(
                bundles,
                project=project,
                graph=trained.transformer.graph,
                model=trained.model,
                created_at=created_at,
                training=plan,
                evaluation=evaluation.to_json(),
                statistics=input_statistics(rows.train.columns, inputs),
                lineage=lineage,
            )
            stage.advance()
    return bundle


@dataclass(frozen=True)
class _Trained:
    """One variant, trained with every seed; model and scores are the first seed's."""

    transformer: Transformer
    model: Any
    scores: npt.NDArray[np.float32]
    runs: Runs


def _train_variant(
    project: Project,
    rows: SplitTable,
    options: Training,
    inputs: Sequence[ModelInput],
    directory: Path,
    name: str,
    progress: Progress,
    jobs: BatchJobs | None,
) -> _Trained:
    """Analyse, transform and train one variant; keep the first seed's model and scores."""
    function: Any = project.preprocessing_fn
    with progress.stage(f"analyse {name}", 1, "steps") as stage:
        transformer = Transformer(analyse(function, inputs, rows.train.columns, directory, jobs))
        arrays = transformer(rows.train.columns)
        held_out = transformer(rows.evaluate.columns)
        stage.advance()
    labels = rows.train.labels
    seeds = options.seed_values
    steps = len(seeds) * options.epochs * -(-len(labels) // options.batch_size)
    kept: list[tuple[Any, npt.NDArray[np.float32]]] = []
    measured = []
    with progress.stage(f"train {name}", steps, "steps") as stage:
        for seed in seeds:
            model = fit(project, transformer.graph, arrays, labels, options, seed, stage.advance)
            scores = predictor(model)(held_out)
            measured.append(measure(rows.evaluate.labels, scores))
            kept = kept or [(model, scores)]
    return _Trained(transformer, *kept[0], Runs(name, seeds, tuple(measured)))


def _rate_baseline(rows: SplitTable, groups: Sequence[str]) -> Runs:
    train, held_out = rows.train, rows.evaluate
    scores = rate_scores(groups, train.columns, train.labels, held_out.columns)
    name = f"rate by {' and '.join(groups)}" if groups else "overall rate"
    return Runs(name, (), (measure(held_out.labels, scores),))


def _evaluate(
    rows: SplitTable,
    seed: int,
    inputs: Sequence[ModelInput],
    trained: _Trained,
    baselines: Sequence[Runs],
    progress: Progress,
) -> Evaluation:
    labels = rows.evaluate.labels
    call = predictor(trained.model)
    with progress.stage("measure effects", len(inputs), "steps") as stage:
        effects = permutation_effects(
            lambda columns: call(trained.transformer(columns)),
            rows.evaluate.columns,
            labels,
            [i.name for i in inputs],
            seed=seed,
            on_column=stage.advance,
        )
    return Evaluation(
        model=trained.runs,
        baselines=tuple(baselines),
        chosen_seed=seed,
        calibration=calibration(labels, trained.scores),
        roc=roc_points(labels, trained.scores),
        effects=effects,
    )
