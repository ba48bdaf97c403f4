"""`tidemill promote`: let another bundle score, at once if a stream runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidemill.pipelines.commands import options, stages

if TYPE_CHECKING:
    from tidemill.pipelines.recovery.promotion_record import PromotionRecord


@click.command(short_help="Let another bundle score.")
@click.argument("version", metavar="VERSION")
@options.config
@options.root
def promote(version: str, config_path: Path, root: Path | None) -> None:
    """Let the bundle VERSION, a folder below bundles/, score from now on.

    A stream of topics that runs loads it first, and calls it in every shape; then it scores the
    requests that are read from there on, and the one before those that wait. Without one, the next
    start, or the next --resume, scores with it. Its model gets the next number below serving/, for
    TensorFlow Serving.
    """
    config = stages.load_for_existing_run(config_path, root)
    from tidemill.pipelines.recovery.promotion import promote as let_score

    say(version, let_score(config, version))


def say(version: str, done: PromotionRecord | None) -> None:
    """Print what has become of a promotion.

    Args:
        version: The version of the bundle.
        done: The `PromotionRecord` of the stream that runs; None if none does.
    """
    if done is None:
        click.echo(f"bundle {version} is live: it scores from the next start, or --resume, on")
        return
    if done.before == version:
        click.echo(f"bundle {version} scores already")
        return
    positions = ", ".join(str(position) for position in done.positions)
    click.echo(f"bundle {version} scores from positions {positions} on; {done.before} did before")
