"""Which views' offline logs a build must write."""

from __future__ import annotations

from collections.abc import Mapping

from tidemill.features.definitions import FeatureView, Project
from tidemill.pipelines.history.builds import Build
from tidemill.serving.files.locks import is_locked
from tidemill.serving.offline.log import OfflineLog


def views_to_log(
    project: Project, build: Build, until_us: Mapping[str, int], *, publish: bool
) -> list[FeatureView]:
    """Return the views whose offline log a build must write.

    In a new generation these are all views, if the log is asked for or if there was one before: it
    holds values of a history that was corrected. In the same generation a log that reaches as far
    as the states stays; a running stream adds to it.

    Args:
        project: The definitions.
        build: The build; its generation is known.
        until_us: View to the instant at which history ends.
        publish: Whether the offline log is asked for.
    """
    if build.before is None or build.is_new_generation:
        asked = publish or (build.before is not None and any(build.before.offline_root.glob("*/*")))
        return list(project.views) if asked else []
    if not publish:
        return []
    running = is_locked(build.before.stream_lock)
    views = []
    for view in project.views:
        log = OfflineLog.of(build.before.offline_root, view)
        reached = log.reached() if log.directory.exists() else None
        far_enough = reached is not None and reached.last_us >= until_us[view.name]
        if not far_enough and not (running and log.directory.exists()):
            views.append(view)
    return views
