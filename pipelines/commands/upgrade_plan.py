"""The plan of an upgrade (`pipelines.upgrade.plan`) as a table, and the registry after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tidemill.pipelines.commands.apply_plan import carry_out
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.reader_clock import reader_clock
from tidemill.pipelines.run.tables import Table
from tidemill.pipelines.upgrade.plan import Fate, Step, UpgradePlan
from tidemill.serving.registry.registration import plan_project

_SIGNS: Final = {
    Fate.KEPT: "=",
    Fate.REBUILT: "~",
    Fate.ADDED: "+",
    Fate.DROPPED: "-",
    Fate.CHANGED: "~",
    Fate.REFUSED: "!",
}


def upgrade_tables(plan: UpgradePlan) -> list[Table]:
    """Return the plan as a table."""
    columns = ("", "what", "becomes", "why", "rows", "beside the stream", "stands still")
    rows = [
        (
            _SIGNS[step.fate],
            step.what,
            step.fate.value,
            step.why,
            f"{step.rows:,}" if step.rows else "",
            _beside(step),
            _stands(step, plan),
        )
        for step in plan.steps
    ]
    return [Table("upgrade of the stream", columns, rows, frozenset([4]))]


def _beside(step: Step) -> str:
    if step.fate not in (Fate.REBUILT, Fate.ADDED) or not step.what.startswith("view "):
        return ""
    return "not measured yet" if step.seconds is None else f"about {_seconds(step.seconds)}"


def _stands(step: Step, plan: UpgradePlan) -> str:
    """Say how long a view's values do not become newer."""
    if not step.what.startswith("view ") or not plan.changes:
        return ""
    if step.fate is Fate.DROPPED:
        return "for ever"
    if step.fate is Fate.ADDED:
        return "begins with the new version"
    return f"about {_seconds(plan.restart_s)}"


def _seconds(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:,.0f} min"
    return f"{max(seconds, 1):,.0f} s"


def upgrade_verdict(plan: UpgradePlan) -> Iterator[str]:
    """Yield lines that say what `tidemill upgrade` would do."""
    if plan.refusals:
        yield "`tidemill upgrade` is refused:"
        yield from (f"  {line}" for line in plan.refusals)
        return
    if not plan.changes:
        yield "`tidemill upgrade` would do nothing: the stream is of this version"
        return
    parts = []
    if plan.rebuilt:
        parts.append(f"make {', '.join(plan.rebuilt)} from history, beside the stream")
    parts.append("stop the stream at a savepoint")
    if plan.kept:
        parts.append(f"go on with the states of {', '.join(plan.kept)}")
    yield f"`tidemill upgrade` would {', then '.join(parts)}"
    how = "as its last start took" if plan.is_measured else "not measured yet"
    yield (
        f"the stream would stand still for about {_seconds(plan.restart_s)} ({how}), until "
        "`tidemill stream --resume` goes on; until then readers see the values of that moment"
    )


def promote(config: Configuration) -> list[str]:
    """Switch all readers to the definitions in the code; return a line for each thing done."""
    preview = plan_project(config.project, config.places)
    done = carry_out(
        config.project,
        config.places,
        preview,
        promote=True,
        unfilled_too=False,
        clock=reader_clock(config),
    )
    return [line for line in done if line != "nothing to do"]
