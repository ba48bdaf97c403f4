"""What else of a project's definitions a stream was begun with, beside its views.

All answers of a stream are stamped with one hash of the project, so that each can be computed again
by the definitions that made it.
"""

from __future__ import annotations

from tidemill.features.definitions import Project
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.serving.definition_changes import project_changes


def changed_definitions(run: StreamRun, project: Project) -> list[str]:
    """Return what answers are stamped with, beside views, that is another now.

    Args:
        run: The record of the stream.
        project: The project as it is now.

    Returns:
        Each change of inputs, columns that they read, the label and the order of views; nothing for
        a stream of a version that did not record them.
    """
    if run.definitions is None:
        return []
    changes = project_changes(run.definitions, project)
    return [change for change in changes if not change.startswith("view ")]
