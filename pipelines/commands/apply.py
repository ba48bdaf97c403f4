"""`tidemill apply`: show what registering the definitions would change, then register them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tidemill.pipelines.commands import options, stages

if TYPE_CHECKING:
    from tidemill.pipelines.config.configuration import Configuration
    from tidemill.serving.stores.online_places import Clock

_CLOCKS: Final = ("replay", "wall")


@click.command(short_help="Register the feature definitions.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done, and stop.")
@click.option("--promote", is_flag=True, help="Switch all readers to the definitions in the code.")
@click.option(
    "--serve-unfilled",
    is_flag=True,
    help="With --promote: switch to definitions that have no values yet, too. Until they are "
    "filled, readers get NOT_FOUND or values that lack older events.",
)
@click.option(
    "--clock",
    type=click.Choice(_CLOCKS),
    help="The clock by which Feast's programs judge the age of values. replay: the frontier that "
    "the stream publishes, for replayed sources. wall: the wall clock. By default that of the "
    "stream, which is the wall clock once one of its sources is live.",
)
@options.config
@options.root
def apply(
    config_path: Path,
    root: Path | None,
    plan_only: bool,
    promote: bool,
    serve_unfilled: bool,
    clock: Clock | None,
) -> None:
    """Show what registering the project's definitions would change, then register them.

    Readers see a new view at once. Of a changed view they keep reading the registered version until
    you run apply with --promote. The command also writes feature_store.yaml, which Feast's own
    programs need, below the root. Running it twice changes nothing.
    """
    if (plan_only and promote) or (serve_unfilled and not promote):
        raise click.UsageError("--plan excludes --promote, and --serve-unfilled needs --promote")
    config = stages.load(config_path, root)
    from tidemill.pipelines.commands import apply_plan
    from tidemill.pipelines.recovery.reader_clock import reader_clock
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.serving.registry.registration import plan_project

    project, places = config.project, config.places
    _show_upgrade(config)
    preview = plan_project(project, places)
    print_tables(apply_plan.plan_tables(preview), sys.stdout)
    click.echo("\n".join(apply_plan.plan_verdict(preview)))
    if plan_only:
        return
    done = apply_plan.carry_out(
        project,
        places,
        preview,
        promote=promote,
        unfilled_too=serve_unfilled,
        clock=clock or reader_clock(config),
    )
    click.echo("\n".join(["done:", *(f"  {line}" for line in done)]))
    for line in apply_plan.next_steps(preview.plan, promoted=promote):
        click.echo(f"next: {line}")


def _show_upgrade(config: Configuration) -> None:
    """Show what an upgrade of the stream would do, if one has begun with other definitions."""
    from tidemill.features.errors import StateMismatch
    from tidemill.pipelines.commands import upgrade_plan
    from tidemill.pipelines.recovery.handoff import StreamRun
    from tidemill.pipelines.run.run_record import for_existing_run
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.pipelines.upgrade.plan import plan_upgrade
    from tidemill.serving.generations.current import find_current

    if (current := find_current(config.root)) is None:
        return
    run = StreamRun.read(current.stream_folder)
    now = {view.name: view.hash for view in config.project.views}
    if run is None or run.ended or (run.views, run.shards) == (now, config.shards):
        return
    try:
        plan = plan_upgrade(for_existing_run(config).pin())
    except StateMismatch as error:
        click.echo(f"the stream cannot be upgraded: {error}\n")
        return
    if plan is None:
        return
    print_tables(upgrade_plan.upgrade_tables(plan), sys.stdout)
    click.echo("\n".join(upgrade_plan.upgrade_verdict(plan)))
    click.echo("")
