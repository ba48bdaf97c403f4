"""Whether the job of a stream can replace a running one, and go on with its states.

Two things must fit: the steps, as the engine pairs them (`pipelines.engines.job_update`), and what
the states inside of them belong to. An operator's state is that of a view's definition in one shard
of so many. An operator of another key has none, and no engine brings it the rows before the update:
it would stop at the gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidemill.pipelines.engines.job_update import Update, compare_steps
from tidemill.pipelines.stream_run.translation import StreamJobSteps

KEPT = "kept"


@dataclass(frozen=True)
class Replacement:
    """What a job that replaces another one takes over.

    Attributes:
        update: What becomes of the steps.
        views: For each view its name, and what becomes of its states.
        obstacles: Why the new job cannot go on with the states; empty if it can.
    """

    update: Update
    views: Sequence[Mapping[str, str]]
    obstacles: tuple[str, ...]

    @property
    def steps(self) -> list[dict[str, str]]:
        """What becomes of each step: its names in both jobs, its fate, and why."""
        return [
            {
                "step": one.name or one.before,
                "before": one.before if one.name and one.before != one.name else "",
                "fate": one.fate.value,
                "why": one.why,
            }
            for one in self.update.steps
        ]


def compare(running: StreamJobSteps, other: StreamJobSteps) -> Replacement:
    """Compare a running job with one that is to replace it.

    Args:
        running: The running job.
        other: The other one.
    """
    update = compare_steps(running.steps, other.steps)
    views = [_fate(name, running, other) for name in dict.fromkeys([*running.views, *other.views])]
    obstacles = []
    if not update.keeps_all:
        obstacles.append("a step of the running job has no partner with the same states")
    for view in views:
        if view["fate"] != KEPT:
            obstacles.append(f"view {view['view']!r}: {view['fate']}")
    for what, before, after in (
        ("project", running.project, other.project),
        ("request", running.request, other.request),
        ("number of shards", running.shards, other.shards),
        ("number of joiners", running.joiners, other.joiners),
        ("mode", running.mode, other.mode),
    ):
        if before != after:
            obstacles.append(f"the {what} was {before}, and is {after}")
    return Replacement(update, views, tuple(obstacles))


def _fate(name: str, running: StreamJobSteps, other: StreamJobSteps) -> dict[str, str]:
    if name not in other.views:
        fate = "gone: answers that wait for its values would wait without an end"
    elif name not in running.views:
        fate = "new: it has no states, and would not get the rows before the update"
    elif running.views[name] != other.views[name]:
        fate = "another definition: its states are not those of the new one"
    else:
        fate = KEPT
    return {"view": name, "fate": fate}
