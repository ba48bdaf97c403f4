"""The page of a proof that follows a stream, ``root/proof/proof.html``.

Promises: the file refers to no other file or server; it is replaced in one step after each round;
text from the user's data is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from markupsafe import Markup

from tidemill.features.contract import SECOND, write_instant
from tidemill.pipelines.report.page_templates import page_template
from tidemill.pipelines.report.proof_charts import bars, bins_of, lines, stacked
from tidemill.pipelines.run.proof_record import (
    HELD_BACK_REMEDY,
    PAGE,
    PROOF,
    Cause,
    Difference,
    ProofRecord,
)
from tidemill.pipelines.run.tables import Table
from tidemill.serving.files.atomic_write import atomic_write

_MEANING: Final = {
    Cause.LATE_EVENT: "right as seen: an event came after the answer, behind the frontier",
    Cause.LATE_REQUEST: "right as of the frontier: the request came behind it",
    Cause.EXPIRED: "readers see a row as too old: its shard is behind others of the view",
    Cause.VERSION: "another device or version of TensorFlow gives other last bits of a score",
    Cause.LOST: "a fault: the engine lost, repeated or delayed what it was given",
    Cause.UNEXPLAINED: "a fault: nothing that is promised explains it",
}
_WORST_FIRST: Final = tuple(sorted(Cause, key=lambda cause: not cause.is_mismatch))


def write_proof_page(project: str, root: Path, record: ProofRecord) -> Path:
    """Write the page of a proof.

    Args:
        project: The name of the project.
        root: The root.
        record: What is proven.

    Returns:
        The file.

    Raises:
        FileError: It cannot be written.
    """
    path = root / PROOF / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        unfinished.write_text(render_proof_page(project, record), encoding="utf-8")
    return path


def render_proof_page(project: str, record: ProofRecord) -> str:
    """Return the page as an HTML document; arguments as for `write_proof_page`."""
    bins = bins_of(record.rounds)
    names = [str(cause) for cause in _WORST_FIRST]
    colours = {name: f"var(--{name.replace(' ', '-')})" for name in names}
    charts = {"rates": "", "values": "", "fresh": ""}
    if bins:
        charts = {
            "rates": stacked(bins, names, colours),
            "values": bars(bins, "var(--first)"),
            "fresh": lines(record.rounds, bins, "var(--first)", "var(--second)"),
        }
    return page_template("proof.html").render(
        project=project,
        tone="none" if not record.values else "bad" if record.mismatches else "good",
        verdict=f"{record.mismatches:,} mismatches in {record.values:,} values",
        up_to=_instant(record.up_to_us),
        written=_instant(record.at_us),
        share="all" if record.share >= 1 else f"{record.share:.0%} of",
        tiles=_tiles(record),
        causes=_cause_table(record),
        counts=_count_table(record),
        legend=[(name, name.replace(" ", "-")) for name in names if record.causes.get(name)],
        charts={name: Markup(chart) for name, chart in charts.items()},
        differences=_difference_table(record.differences),
        lost=[str(one["said"]) for one in record.lost],
        notes=list(record.notes),
        stops=record.stops,
        held_back=len(record.lost_requests),
        held_back_remedy=HELD_BACK_REMEDY,
        stream=f"stream {record.stream} of generation {record.generation}",
        has_fresh=any(one.fresh_s is not None for one in record.rounds),
    )


def _instant(time_us: int) -> str:
    return write_instant(time_us // SECOND * SECOND) if time_us else "-"


def _tiles(record: ProofRecord) -> list[tuple[str, str]]:
    share = record.values / record.served if record.served else 0.0
    found = [
        (f"{record.values:,}", "values recomputed"),
        (f"{share:.0%}", "of those that were served"),
        (f"{record.counts.get('predictions', 0):,}", "predictions"),
        (f"{record.counts.get('store_values', 0):,}", "values read from the online store"),
    ]
    if record.behind_s:
        found.append((f"{record.behind_s:,.0f} s", "behind the clock"))
    if record.rounds and (fresh := record.rounds[-1].fresh_s) is not None:
        found.append((f"{fresh:.1f} s", "until a value is in the store, median"))
    return found


def _cause_table(record: ProofRecord) -> Table:
    rows = [
        (str(cause), f"{record.causes.get(cause, 0):,}", _MEANING[cause]) for cause in _WORST_FIRST
    ]
    return Table("", ("cause", "values", "meaning"), rows, frozenset((1,)))


def _count_table(record: ProofRecord) -> Table:
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in record.counts.items()]
    return Table("", ("compared", "number"), rows, frozenset((1,)))


def _difference_table(differences: Sequence[Difference]) -> Table | None:
    rows = [_row(one) for one in differences]
    columns = (
        "found", "cause", "what", "entity", "feature", "as of", "served", "recomputed", "because",
        "events",
    )  # fmt: skip
    return Table("", columns, rows) if rows else None


def _row(one: Difference) -> tuple[str, ...]:
    feature = one.feature or one.view
    return (
        one.at, one.cause, f"{one.what} {one.id}", one.entity, feature, one.as_of, one.served,
        one.recomputed, one.why, ", ".join(one.events),
    )  # fmt: skip
