"""Which steps of a running job another one could take over, as `--update` of Dataflow decides it.

Dataflow pairs the steps of both jobs by name. Steps that were renamed are paired by a mapping
(``--transform_name_mapping``). It refuses the other job if a step has no partner, if a coder or a
state differs, or if a stateful step has gone. What a step does may change. The service has the last
word: ``--dataflow_service_options=graph_validate_only`` asks it, without an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tidemill.pipelines.engines.job_steps import JobStep


class Fate(Enum):
    """What becomes of a step. The value is for the user."""

    SAME = "maps"
    OTHER_WORK = "maps, does something else"
    OTHER_STATE = "does not map"
    NEW = "new"
    GONE = "gone"


_KEPT: Final = frozenset({Fate.SAME, Fate.OTHER_WORK})


@dataclass(frozen=True)
class StepChange:
    """What becomes of a step.

    Attributes:
        before: Its name in the running job; empty if it has none.
        name: Its name in the other one; empty if it has none.
        fate: What becomes of it.
        why: What differs.
    """

    before: str
    name: str
    fate: Fate
    why: str = ""


@dataclass(frozen=True)
class Update:
    """What an update would do to the steps of a job.

    Attributes:
        steps: What becomes of each step.
    """

    steps: tuple[StepChange, ...]

    @property
    def mapping(self) -> Mapping[str, str]:
        """The steps that were renamed: ``--transform_name_mapping``, as JSON."""
        return {
            one.before: one.name
            for one in self.steps
            if one.fate in _KEPT and one.before != one.name
        }

    @property
    def keeps_all(self) -> bool:
        """Whether every step of the running job has a partner that can take its states over."""
        return all(one.fate in _KEPT or one.fate is Fate.NEW for one in self.steps)


def compare_steps(running: Sequence[JobStep], other: Sequence[JobStep]) -> Update:
    """Compare the steps of a running job with those of one that is to replace it.

    A step that is gone was renamed to a new one, if they are alike and no two such steps are.

    Args:
        running: The steps of the running job.
        other: Those of the other one.
    """
    before = {step.name: step for step in running}
    after = {step.name: step for step in other}
    changes = [_change(before[name], after[name]) for name in before.keys() & after.keys()]
    gone = [step for name, step in before.items() if name not in after]
    new = [step for name, step in after.items() if name not in before]
    for step in gone:
        likes = [one for one in new if _alike(step, one)]
        rivals = [one for one in gone if _alike(one, step)]
        if len(likes) == len(rivals) == 1:
            changes.append(_change(step, likes[0]))
            new.remove(likes[0])
        else:
            what = "it has states" if step.states or step.restriction else ""
            changes.append(StepChange(step.name, "", Fate.GONE, what))
    changes += [StepChange("", step.name, Fate.NEW) for step in new]
    return Update(tuple(sorted(changes, key=lambda one: (one.name or one.before, one.before))))


def _alike(one: JobStep, other: JobStep) -> bool:
    """Tell whether two steps that have other names may be the same step."""
    return one.does == other.does and not _differences(one, other)


def _change(before: JobStep, after: JobStep) -> StepChange:
    differences = _differences(before, after)
    if differences:
        return StepChange(before.name, after.name, Fate.OTHER_STATE, "; ".join(differences))
    if before.payload == after.payload and before.hints == after.hints:
        return StepChange(before.name, after.name, Fate.SAME)
    return StepChange(before.name, after.name, Fate.OTHER_WORK)


def _differences(before: JobStep, after: JobStep) -> list[str]:
    """Return what keeps a step from taking over the states of another one."""
    found = []
    for what, one, other in (
        ("kind", before.kind, after.kind),
        ("restriction", before.restriction, after.restriction),
    ):
        if one != other:
            found.append(f"{what} {one or 'none'}, now {other or 'none'}")
    for what, had, has in (
        ("output", before.gives, after.gives),
        ("state", before.states, after.states),
    ):
        for name in sorted(had.keys() | has.keys()):
            if had.get(name) != has.get(name):
                said = f"{what} {name!r}: {had.get(name, 'none')}, now {has.get(name, 'none')}"
                found.append(said)
    return found
