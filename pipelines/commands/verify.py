"""`tidemill verify`: recompute everything that was served, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tidemill.pipelines.commands import options, stages

_OF_FOLLOW = ("share", "every", "keep_up", "once", "until", "as_json")


@click.command(short_help="Recompute everything that was served, and compare.")
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Number of requests that the plain-Python oracle recomputes, too.",
)
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="When the oracle ends at the latest; what it has not reached is stated.",
)
@click.option(
    "--follow",
    "follows",
    is_flag=True,
    help="Prove the stream while it runs, round after round, until Ctrl-C.",
)
@click.option(
    "--share",
    metavar="X",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="With --follow: the share of the entities whose values are recomputed; by default all.",
)
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    help="With --follow: how often to look for something new; by default every 2 seconds.",
)
@click.option(
    "--keep-up",
    is_flag=True,
    help="With --follow: halve the share when the proof falls further and further behind.",
)
@click.option("--once", is_flag=True, help="With --follow: end when all that is durable is proven.")
@click.option(
    "--until",
    metavar="TIME",
    help="With --follow: end when all that was received before this instant is proven.",
)
@click.option("--json", "as_json", is_flag=True, help="With --follow: print a JSON object a round.")
@options.opened
def verify(
    config_path: Path,
    root: Path | None,
    quiet: bool,
    sample: int,
    deadline: float,
    follows: bool,
    **of_follow: Any,
) -> None:
    """Recompute everything that was served from the raw files, and compare bit for bit.

    That is: features, scores, releases, publications, both stores, the training table and the
    states. The last line is `N mismatches in M values`, where M counts served features (of the
    training table if nothing was served); the exit status is 1 unless N is 0.

    With --follow, what a stream serves is recomputed while it runs, from the log behind its last
    savepoint: answers, scores, publications and rows of the online store. It goes on where the last
    proof ended, and says up to when all is proven.
    """
    if not follows:
        for name in _OF_FOLLOW:
            if of_follow[name]:
                option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
                raise click.UsageError(f"{option} needs --follow")
    config = stages.load_for_existing_run(config_path, root)
    if follows:
        from tidemill.pipelines.commands.follow_proof import follow_proof

        follow_proof(config, quiet=quiet, **of_follow)
        return
    from tidemill.pipelines.verify import verify as stage

    progress = stages.progress(quiet)
    figures = stages.run_stage(
        "verify",
        config.root,
        lambda: stage.verify(config, progress, sample=sample, deadline_s=deadline),
    )
    stages.end_with_verdict(figures)
