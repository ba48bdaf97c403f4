"""`tidemill apply`: register the definitions, the plan first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tidemill.pipelines.commands import options, stages

if TYPE_CHECKING:
    from tidemill.serving.stores.online_places import Clock

_CLOCKS: Final = ("replay", "wall")


@click.command(short_help="Register the definitions; show the plan first.")
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
@options.config
@options.root
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
    config = stages.load(config_path, root)
    from tidemill.pipelines.commands import apply_plan
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.serving.registry.registration import plan_project

    project, places = config.project, config.places
    preview = plan_project(project, places)
    print_tables(apply_plan.plan_tables(preview), sys.stdout)
    click.echo("\n".join(apply_plan.plan_verdict(preview)))
    if plan_only:
        return
    done = apply_plan.carry_out(
        project, places, preview, promote=promote, unfilled_too=serve_unfilled, clock=clock
    )
    click.echo("\n".join(["done:", *(f"  {line}" for line in done)]))
    for line in apply_plan.next_steps(preview.plan, promoted=promote):
        click.echo(f"next: {line}")
