"""`tidemill replay-rejected`: export rejected records, read repaired ones back in."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.pipelines.commands import options, stages


@click.command("replay-rejected", short_help="Export rejected records; read repaired ones in.")
@click.option(
    "--mended",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An exported file with repaired payloads, to be read in.",
)
@click.option(
    "--from-topic",
    is_flag=True,
    help="Export from the topic of rejected records (`rejected.kafka`), not from files.",
)
@click.option(
    "--root-id",
    metavar="ID",
    help="With --from-topic: the root whose records are exported, if it is not this one.",
)
@options.opened
def replay_rejected(
    config_path: Path,
    root: Path | None,
    quiet: bool,
    mended: Path | None,
    from_topic: bool,
    root_id: str | None,
) -> None:
    """Export rejected records for repair, or read repaired records back in.

    Without --mended, write the records of each source to a file; repair the payloads in it. With
    --mended, read that file.
    """
    if mended is not None and from_topic:
        raise click.UsageError("--from-topic exports, and --mended reads in; give one of the two.")
    if root_id is not None and not from_topic:
        raise click.UsageError("--root-id goes with --from-topic.")
    config = stages.load_for_existing_run(config_path, root)
    progress = stages.progress(quiet)
    if from_topic:
        from tidemill.pipelines.delivery.export_dead_letters import export_dead_letters
        from tidemill.pipelines.forget.places import forgotten_places

        forgotten = forgotten_places(config.root, config.project.request.name)
        stages.run_stage(
            "replay-rejected",
            config.root,
            lambda: export_dead_letters(config, progress, root=root_id, forgotten=forgotten),
        )
        return
    from tidemill.pipelines.ingest.replay_rejected import replay

    stages.run_stage(
        "replay-rejected",
        config.root,
        lambda: replay(config, progress, mended=mended),
    )
