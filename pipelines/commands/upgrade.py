"""`tidemill upgrade`: let the stream go on with the project as it is now."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command(short_help="Let the stream go on with the project as it is now.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done, and stop.")
@options.wait
@options.opened
def upgrade(config_path: Path, root: Path | None, quiet: bool, plan_only: bool, wait: bool) -> None:
    """Let the stream go on with another version of the project: views, shards, outputs, a bundle.

    Views whose definition is the same keep their states. The states of added and changed views are
    made from history, while the stream runs; then it is stopped, the states are brought up to it,
    and `tidemill stream --resume` goes on with all of them. Readers are switched to the new
    definitions of changed views.

    A command that was killed has changed nothing, or everything: run it again.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.commands import upgrade_plan
    from tidemill.pipelines.run.tables import print_tables
    from tidemill.pipelines.upgrade.plan import plan_upgrade

    plan = plan_upgrade(config.pin())
    if plan is not None:
        print_tables(upgrade_plan.upgrade_tables(plan), sys.stdout)
        click.echo("\n".join(upgrade_plan.upgrade_verdict(plan)))
    elif plan_only:
        click.echo("there is no stream to upgrade")
    if plan_only:
        return
    from tidemill.pipelines.upgrade import upgrade as stage

    progress = stages.progress(quiet)
    stages.run_stage("upgrade", config.root, lambda: stage.upgrade(config, progress, wait=wait))
    for line in upgrade_plan.promote(config):
        click.echo(f"done: {line}")
    click.echo("next: tidemill stream --resume")
