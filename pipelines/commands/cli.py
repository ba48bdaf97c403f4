"""The command line: ``tidemill``.

A command opens the configuration, calls one function and prints what it returns: results on
standard output, progress and errors on standard error. This module imports click and nothing else
that costs time; what a command needs is imported inside it, so that ``tidemill --help`` answers at
once.

Exit status: 0 when all went well; 1 for an error that the program explains, and for `verify` and
`demo` when anything differs; 2 for a command line that cannot be understood.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from datetime import datetime

    from tidemill.pipelines.config.configuration import Configuration
    from tidemill.pipelines.run.progress import Progress
    from tidemill.serving.stores.online_places import Clock

Command = TypeVar("Command", bound=Callable[..., Any])

DEMO_ROOT: Final = Path("demo")
"""Where `tidemill demo` writes, in the working directory: its YAML file may be in a package that
nobody may write to."""

_ENGINES: Final = ("fnapi", "prism")
_MODES: Final = ("exact", "eager")
_CLOCKS: Final = ("replay", "wall")

_config = click.option(
    "--config",
    "config_path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    default=Path("tidemill.yaml"),
    show_default=True,
    help="The configuration file.",
)
_root = click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where everything is written, instead of the file's root.",
)
_quiet = click.option("--quiet", is_flag=True, help="Print results and errors only.")
_speed = click.option(
    "--speed",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Replay at N times real time; as fast as possible by default.",
)
_engine = click.option(
    "--engine", type=click.Choice(_ENGINES), help="The Beam engine that runs the stream."
)


def _opened(command: Command) -> Command:
    """Give a command the options that say which configuration and where."""
    return _config(_root(_quiet(command)))


def _load(path: Path, root: Path | None) -> Configuration:
    from tidemill.pipelines.config.configuration import load

    return load(path, root=root)


def _load_as_made(path: Path, root: Path | None) -> Configuration:
    """Load for a command that works on what a root holds already."""
    from tidemill.pipelines.run.run_record import as_made

    return as_made(_load(path, root))


def _instant_us(text: str) -> int:
    from tidemill.features.definitions.expressions import TIMESTAMP
    from tidemill.features.rows import text_values

    found = text_values.parse_one(text, TIMESTAMP, None)
    if type(found) is not int:
        raise click.BadParameter(
            f"found {text!r}, expected a date and time with its offset such as "
            "2026-02-20T00:00:00Z",
            param_hint="'--until'",
        )
    return found


def _progress(quiet: bool) -> Progress:
    from tidemill.pipelines.run.progress import make_progress

    return make_progress(sys.stderr, quiet=quiet)


def _run(
    stage: str, configuration: Configuration, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Run a stage, put its figures into the run's summary, and print them."""
    from tidemill.pipelines.run.summary import figure_tables, print_tables, write_summary

    began = time.perf_counter()
    figures = {**work(), "seconds": round(time.perf_counter() - began, 3)}
    write_summary(configuration.root, stage, figures)
    print_tables(figure_tables(stage, figures), sys.stdout)
    return figures


def _end_with_verdict(figures: dict[str, Any]) -> None:
    """Print what `verify` found as the last line, and fail on a mismatch."""
    mismatches, values = figures["mismatches"], figures["values"]
    click.echo(f"{mismatches:,} mismatches in {values:,} values")
    if mismatches != 0:
        sys.exit(1)


class _InOrder(click.Group):
    """Lists its commands in the order in which one comes to need them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidemill")
def commands() -> None:
    """Streaming features and inference on Apache Beam, provably equal to batch.

    A project is one Python module and one YAML file; `tidemill init NAME` writes both to start
    from.
    """


@commands.command(short_help="Run the whole loop on an installed project.")
@click.argument("name", required=False)
@click.option("--sample", is_flag=True, help="Only a few days: a quick look.")
@_speed
@_engine
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=DEMO_ROOT,
    show_default=True,
    help="Where everything is written.",
)
@click.option("--seeds", metavar="N", type=click.IntRange(min=1), help="How many trainings.")
@_quiet
def demo(
    name: str | None,
    sample: bool,
    speed: float | None,
    engine: str | None,
    root: Path,
    seeds: int | None,
    quiet: bool,
) -> None:
    """Run the whole loop on an installed project: from raw events to proven predictions.

    NAME is the project's; it can be left out where only one is installed. The last line is
    `N mismatches in M values`; the exit status is 1 unless N is 0.
    """
    from tidemill.pipelines.config.installed_projects import installed_project

    configuration = _load(installed_project(name), root)
    if seeds is not None:
        training = dataclasses.replace(configuration.training, seeds=seeds)
        configuration = dataclasses.replace(configuration, training=training)
    from tidemill.pipelines.commands import demo as stage
    from tidemill.pipelines.run.summary import print_tables

    figures = stage.demo(configuration, _progress(quiet), sample=sample, speed=speed, engine=engine)
    print_tables([stage.overview(figures)], sys.stdout)
    click.echo(f"every figure: {root / 'summary.json'}; pictures: {figures['report']}")
    _end_with_verdict(figures["verify"])


@commands.command(short_help="Write a small project to start from.")
@click.argument("name")
@click.option(
    "--path",
    "parent",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The directory to write NAME/ into; the working directory by default.",
)
def init(name: str, parent: Path) -> None:
    """Write a small working project to start from, with events of its own, to NAME/."""
    from tidemill.pipelines.commands.scaffold import write_project

    folder = write_project(name, parent)
    click.echo(f"{folder} is written. README.md in it says what it is; next:\n")
    click.echo(f"  cd {folder}\n  tidemill validate")


@commands.command(short_help="Read every source and say what is rejected.")
@_opened
def validate(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Read every source, count its rows, and say which are rejected and why."""
    configuration = _load(config_path, root)
    from tidemill.pipelines.ingest.ingest import validate_sources

    progress = _progress(quiet)
    _run("validate", configuration, lambda: validate_sources(configuration, progress))


@commands.command(short_help="Compute the features of all history.")
@click.option(
    "--publish", is_flag=True, help="Fill the online store and the offline log from history, too."
)
@_opened
def backfill(config_path: Path, root: Path | None, quiet: bool, publish: bool) -> None:
    """Compute the features of every request in history, and the state that a stream starts from."""
    configuration = _load(config_path, root)
    from tidemill.pipelines.history import backfill as stage
    from tidemill.pipelines.run.run_record import remember

    remember(configuration, sample=False)
    progress = _progress(quiet)
    _run("backfill", configuration, lambda: stage.backfill(configuration, progress, publish))


@commands.command(short_help="Train and evaluate a model; write a bundle.")
@_opened
def train(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Train a model on the backfilled features, evaluate it, and write a bundle."""
    configuration = _load_as_made(config_path, root)
    from tidemill.pipelines.training import train as stage

    progress = _progress(quiet)
    _run("train", configuration, lambda: stage.train(configuration, progress))


@commands.command(short_help="Answer requests on the stream.")
@_speed
@_engine
@click.option("--mode", type=click.Choice(_MODES), help="Wait for the frontier, or answer at once.")
@click.option(
    "--until",
    metavar="TIME",
    help="Stop before what was received from TIME on, such as 2026-02-20T00:00:00Z, and keep the "
    "state to go on from.",
)
@click.option("--resume", is_flag=True, help="Go on from where the stream stopped or was killed.")
@_opened
def stream(
    config_path: Path,
    root: Path | None,
    quiet: bool,
    speed: float | None,
    engine: str | None,
    mode: str | None,
    until: str | None,
    resume: bool,
) -> None:
    """Answer requests on the stream: features, publications, predictions.

    It starts over from the handed-over state: what an earlier run left is removed, also from the
    online store. With --resume it goes on instead.
    """
    until_us = None if until is None else _instant_us(until)
    configuration = _load_as_made(config_path, root)
    from tidemill.pipelines.stream_run import stream as stage

    progress = _progress(quiet)
    _run(
        "stream",
        configuration,
        lambda: stage.stream(
            configuration,
            progress,
            speed=speed,
            engine=engine,
            mode=mode,
            until_us=until_us,
            resume=resume,
        ),
    )


@commands.command(short_help="Publish every entity again, from state.")
@_opened
def republish(config_path: Path, root: Path | None, quiet: bool) -> None:
    """Fill the online store again from state, as of the last releases of the stream.

    For a store that was emptied, or has lost writes. The stream may run meanwhile: what is newer in
    the store stays.
    """
    configuration = _load_as_made(config_path, root)
    from tidemill.pipelines.recovery import republish as stage

    progress = _progress(quiet)
    _run("republish", configuration, lambda: stage.republish(configuration, progress))


@commands.command(short_help="Prove what was served: recompute and compare.")
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="How many requests the plain-Python oracle recomputes.",
)
@_opened
def verify(config_path: Path, root: Path | None, quiet: bool, sample: int) -> None:
    """Recompute every feature value that was served, and compare bit for bit.

    The last line is `N mismatches in M values`; the exit status is 1 unless N is 0.
    """
    configuration = _load_as_made(config_path, root)
    from tidemill.pipelines.verify import verify as stage

    progress = _progress(quiet)
    figures = _run(
        "verify", configuration, lambda: stage.verify(configuration, progress, sample=sample)
    )
    _end_with_verdict(figures)


@commands.command(short_help="Read features from the online store.")
@click.argument("view")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@_config
@_root
def features(config_path: Path, root: Path | None, view: str, keys: tuple[str, ...]) -> None:
    """Read the features of some entities from the online store, with their status.

    VIEW is a feature view's name, KEY an entity's key.
    """
    configuration = _load_as_made(config_path, root)
    from tidemill.pipelines.commands.features import read_features
    from tidemill.pipelines.run.summary import columns_as_rows, print_tables

    table = read_features(configuration, view, keys)
    print_tables([columns_as_rows(table.to_pydict())], sys.stdout)


@commands.command(short_help="Show what a prediction was made of.")
@click.argument("prediction_id")
@_config
@_root
def explain(config_path: Path, root: Path | None, prediction_id: str) -> None:
    """Show what one prediction was made of: values, events, and the values recomputed.

    PREDICTION_ID is the id of its request.
    """
    configuration = _load_as_made(config_path, root)
    from tidemill.pipelines.run.summary import print_tables
    from tidemill.pipelines.verify import explain as stage

    print_tables(stage.explain(configuration, prediction_id).tables(), sys.stdout)


@commands.command(short_help="Register the definitions; show the plan first.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done, and do nothing.")
@click.option(
    "--promote", is_flag=True, help="Let everybody read the code's definitions: views and service."
)
@click.option(
    "--serve-unfilled",
    is_flag=True,
    help="With --promote: also where a definition has no values yet. Readers get NOT_FOUND, or "
    "values that are not as old as they should be.",
)
@click.option(
    "--clock",
    type=click.Choice(_CLOCKS),
    default="replay",
    show_default=True,
    help="What Feast's programs judge the age of values by: the published frontier, which goes "
    "with replayed sources, or the wall clock.",
)
@_config
@_root
def apply(
    config_path: Path,
    root: Path | None,
    plan_only: bool,
    promote: bool,
    serve_unfilled: bool,
    clock: Clock,
) -> None:
    """Register the project's definitions, and show before what that does.

    A view that is new is promoted at once; a changed one gets a pending version beside the
    promoted one, which everybody goes on reading until --promote. The root then holds the
    feature_store.yaml with which Feast's own programs read. Applying again changes nothing.
    """
    if (plan_only and promote) or (serve_unfilled and not promote):
        raise click.UsageError("--plan stands alone, and --serve-unfilled needs --promote")
    configuration = _load(config_path, root)
    from tidemill.pipelines.commands import apply as stage
    from tidemill.pipelines.run.summary import print_tables

    preview = stage.plan(configuration)
    print_tables(stage.plan_tables(preview), sys.stdout)
    click.echo("\n".join(stage.plan_verdict(preview)))
    if plan_only:
        return
    done = stage.apply(
        configuration, preview, promote=promote, unfilled_too=serve_unfilled, clock=clock
    )
    click.echo("\n".join(["done:", *(f"  {line}" for line in done)]))
    for line in stage.next_steps(preview.plan, promoted=promote):
        click.echo(f"next: {line}")


@commands.command("clean-store", short_help="Drop key spaces that nobody refers to.")
@click.option("--yes", is_flag=True, help="Drop them; without it they are only shown.")
@_config
@_root
def clean_store(config_path: Path, root: Path | None, yes: bool) -> None:
    """Drop the key spaces of the online store that no version in the registry refers to.

    A reader or a stream of an old definition may still use one: look at how old it is.
    """
    configuration = _load(config_path, root)
    from tidemill.pipelines.commands import apply as stage
    from tidemill.pipelines.run.summary import print_tables

    found = stage.orphans(configuration)
    if not found:
        click.echo("every key space is referred to by a version in the registry")
        return
    print_tables(stage.orphan_tables(found), sys.stdout)
    if not yes:
        click.echo("--yes drops them, with their rows and frontiers")
        return
    for name in stage.clean(configuration, found):
        click.echo(f"dropped {name}")


@commands.command("merge-log", short_help="Make few files of the offline log's many.")
@click.option(
    "--before",
    metavar="DATE",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Merge the days before DATE (UTC); by default those that get no more rows, which are the "
    "days before the one that the slowest shard of the view has reached.",
)
@click.option("--dry-run", is_flag=True, help="Say what would become of how many files.")
@_opened
def merge_log(
    config_path: Path, root: Path | None, quiet: bool, before: datetime | None, dry_run: bool
) -> None:
    """Make few files of the many that the stream leaves in the offline log.

    One for each day and segment of the stream. History reads the same before, meanwhile and after;
    the stream may run meanwhile, and can still go on from its last cut or start over. The rows of
    one day and segment are in memory together.
    """
    configuration = _load(config_path, root)
    from tidemill.pipelines.history import merge_log as stage
    from tidemill.pipelines.run.summary import print_tables

    merged = stage.merge_log(
        configuration,
        _progress(quiet),
        before=None if before is None else before.date().isoformat(),
        dry_run=dry_run,
    )
    print_tables(stage.merged_tables(merged, dry_run=dry_run), sys.stdout)


@commands.command("replay-rejected", short_help="Mend rejected records, feed them in.")
@click.option(
    "--mended",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An exported file, its payloads mended: feed it in.",
)
@_opened
def replay_rejected(config_path: Path, root: Path | None, quiet: bool, mended: Path | None) -> None:
    """Export rejected records to be mended, or feed mended ones in again.

    Without --mended the records are written to a file, whose payloads are yours to edit; with it
    they are fed in.
    """
    configuration = _load_as_made(config_path, root)
    from tidemill.pipelines.ingest.replay_rejected import replay

    progress = _progress(quiet)
    _run("replay-rejected", configuration, lambda: replay(configuration, progress, mended=mended))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave the process with its exit status.

    Args:
        arguments: The command line without the program's name; the process's own by default.
    """
    try:
        commands.main(args=arguments, prog_name="tidemill")
    except Exception as error:
        if not _is_explained(error):
            raise
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


def _is_explained(error: Exception) -> bool:
    """Tell whether an error is one of Tidemill's, without importing them to ask."""
    errors = sys.modules.get("tidemill.features.errors")
    return errors is not None and isinstance(error, errors.TidemillError)
