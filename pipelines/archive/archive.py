"""Bringing the archive of a project up."""

from __future__ import annotations

from typing import Any

from tidemill.features.errors import InputError
from tidemill.pipelines.archive.archiving import Archived, bring_up
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.live_rows import find_live_rows
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.generations.current import Current


def archive(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Bring the archive of a project up, as the command ``tidemill archive``; see `bring_up`.

    Returns:
        The figures.

    Raises:
        InputError: The configuration names no archive.
    """
    if config.archive is None:
        raise InputError(
            f"{config.path} names no archive; write `archive: {{folder: archive}}` to keep the "
            "rows of topics there"
        )
    with progress.stage("archive", None, "rows") as stage:
        done = archive_live_rows(config, config.current) or Archived()
        stage.advance(sum(done.rows.values()))
    return done.as_figures()


def archive_live_rows(config: Configuration, current: Current) -> Archived | None:
    """Bring the archive of a project up to what is sealed in a generation; see `bring_up`.

    Returns:
        None if the project has no archive, or no stream has read a topic.
    """
    if config.archive is None or (live := find_live_rows(current, config.project)) is None:
        return None
    return bring_up(config, config.archive, live)
