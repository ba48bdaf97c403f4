"""The report's tables, from the summary of a run.

A stage that has not run has no rows; a missing figure is a dash. The tables show the figures of the
stages and recompute none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.features.contract import DAY, HOUR, MINUTE, SECOND, write_instant
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.run.tables import Table, write_value
from tidemill.serving.bundles.bundle import Bundle

Summary = Mapping[str, Mapping[str, Any]]

_COUNTS: Final = {
    "requests": "requests for a prediction",
    "predictions": "requests that were answered",
    "unanswered": "requests that a view did not answer in time; they are rejected records",
    "events": "events that were read",
    "rejected": "records that could not be used",
    "late": "accepted events behind the frontier; they count for every later answer",
    "late_requests": "requests behind the frontier, answered as of the frontier",
    "duplicates": "events that were delivered before; they count once",
    "conflicts": "events with the id of another event but other content; each counts",
    "without_key": "events without the key of a view; they are no events of that view",
    "repeats": "rows that the engine delivered again; they were dropped",
    "early": "batches that arrived before their turn; they waited",
    "overflows": "window totals too large for a number; their value is null",
    "publications": "rows sent to the feature store, one for each change of an entity's features",
    "releases": "steps of the stream's operators; each prediction names those it used",
}
"""The stream's counts, in order, and their meanings."""


def write_span(span_us: float) -> str:
    """Format a duration in its two largest units.

    >>> write_span(90_061_000_000), write_span(754_300_000), write_span(2_340_000)
    ('1 d 1 h', '12 min 34 s', '2.34 s')
    """
    if span_us < MINUTE:
        return f"{span_us / SECOND:.3g} s"
    for large, small, names in (
        (DAY, HOUR, ("d", "h")),
        (HOUR, MINUTE, ("h", "min")),
        (MINUTE, SECOND, ("min", "s")),
    ):
        if span_us >= large:
            whole, rest = divmod(int(span_us), large)
            return f"{whole:,} {names[0]} {rest // small} {names[1]}"
    raise AssertionError(span_us)  # a minute or more has a unit


def write_rate(work: float | None, seconds: float | None, unit: str) -> str:
    """Format a rate; a dash if the work or the time is unknown."""
    if not work or not seconds:
        return "-"
    return (
        f"{work / seconds:,.0f} {unit}/s"
        if work >= 10 * seconds
        else f"{work / seconds:.2g} {unit}/s"
    )


def number(figures: Mapping[str, Any], *path: str) -> float | None:
    """Return the number at a path of keys; None if there is none."""
    found: Any = figures
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def mapping(figures: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping at a key; an empty one if there is none."""
    found = figures.get(key)
    return found if isinstance(found, Mapping) else {}


# --- the proof -----------------------------------------------------------------------------------


_CHECKS: Final = (
    ("due_requests", "", "lost_requests", "Requests",
     "every one that the live log has made due, against answers and rejected records"),
    ("values", "predictions", "feature_mismatches", "Values used",
     "every feature of every prediction, against batch over all history"),
    ("late_values", "", "", "Of them late",
     "differ by late events, against batch over what had arrived by then"),
    ("oracle_values", "oracle_requests", "oracle_mismatches", "Oracle",
     "a sample, against slow and plain code of its own"),
    ("scores", "", "score_mismatches", "Scores",
     "every score and stamp, against the bundle that it names"),
    ("releases", "publications", "output_mismatches", "Releases",
     "with publications and rejected records, against the polls repeated"),
    ("store_values", "store_entities", "store_mismatches", "Feature store",
     "read by the store's own client, against batch; and every column"),
    ("offline_rows", "", "offline_mismatches", "Offline logs",
     "every change point, against the log written again"),
    ("training_values", "training_rows", "training_mismatches", "Training table",
     "every feature and label, against batch"),
    ("states", "", "build_mismatches", "States",
     "with their records, against those made again from the log"),
)  # fmt: skip
"""What `verify` compares: the figure of what was compared, of what it belongs to, and of its
mismatches; a name, and what it was compared with. Late values have no mismatches."""

_ALWAYS: Final = frozenset({"values", "oracle_values", "store_values"})
"""What is shown although nothing was compared."""


@dataclass(frozen=True)
class Check:
    """One comparison of the verification.

    Attributes:
        name: Its name.
        how: What was compared with what.
        of: Its scope, such as ``"1,000 requests"``; may be empty.
        values: The number of values compared.
        mismatches: The number of values that differed; None if it is unknown.
    """

    name: str
    how: str
    of: str
    values: float
    mismatches: float | None


def proof_checks(verify: Mapping[str, Any]) -> list[Check]:
    """Return the comparisons that `verify` made, in the order of `_CHECKS`."""
    checks = []
    for figure, unit, wrong, name, how in _CHECKS:
        compared = number(verify, figure)
        mismatches = number(verify, wrong) if wrong else 0
        if compared or (wrong and compared is not None and (mismatches or figure in _ALWAYS)):
            count = number(verify, unit) if unit else None
            of = "" if count is None else f"{count:,} {unit.rpartition('_')[2]}"
            checks.append(Check(name, how, of, compared, mismatches))
    return checks


@dataclass(frozen=True)
class ProofVerdict:
    """The result of the verification.

    Attributes:
        tone: ``good``, ``bad`` or ``none`` (too little was compared).
        line: The result in short.
        more: A sentence about it.
    """

    tone: str
    line: str
    more: str


def proof_verdict(verify: Mapping[str, Any]) -> ProofVerdict:
    """Return the result; good only if values were compared and no comparison found a mismatch."""
    checks = proof_checks(verify)
    total, values = number(verify, "mismatches"), number(verify, "values")
    if total is None or values is None:
        return ProofVerdict(
            "none", "Not proven yet", "Run `tidemill verify` to compare every value."
        )
    line = f"{total:,} mismatches in {values:,} values"
    wrong = [check for check in checks if check.mismatches]
    if wrong or total:
        where = ", ".join(f"{check.name} ({check.mismatches:,})" for check in wrong)
        more = "Served values differ from their recomputation"
        return ProofVerdict("bad", line, f"{more}: {where}." if where else f"{more}.")
    if not values or any(check.mismatches is None for check in checks):
        return ProofVerdict("none", line, "This proves nothing: too little was compared.")
    return ProofVerdict(
        "good",
        line,
        "Every feature value that a prediction used was computed again from the original history "
        "and is the same, bit for bit.",
    )


def proof_table(verify: Mapping[str, Any]) -> Table | None:
    """Return the table of all comparisons; None before the first verification."""
    rows = [
        (c.name, c.of, write_value(c.values), write_value(c.mismatches), c.how)
        for c in proof_checks(verify)
    ]
    columns = ("check", "of", "values", "mismatches", "what was compared")
    return Table("", columns, rows, frozenset((1, 2, 3))) if rows else None


def listed(findings: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return findings, such as the first mismatches, as a table with a row each; None without any.

    A key that has no value in any finding gets no column.
    """
    keys = list(dict.fromkeys(key for item in findings for key in item))
    filled = [key for key in keys if any(item.get(key) not in (None, "") for item in findings)]
    rows = [
        tuple("-" if item.get(key) in (None, "") else str(item[key]) for key in filled)
        for item in findings
    ]
    return Table("", [key.replace("_", " ") for key in filled], rows) if rows else None


# --- throughput, freshness, counts ---------------------------------------------------------------


def stage_table(summary: Summary, bundle: Bundle | None) -> Table | None:
    """Return the work, time and rate of each stage; None before the first stage."""
    rows = list(_stages(summary, bundle))
    if not rows:
        return None
    return Table("", ("stage", "took", "rate", "what it did"), rows, frozenset((1, 2)))


def _stages(summary: Summary, bundle: Bundle | None) -> Iterator[tuple[str, str, str, str]]:
    if figures := summary.get("backfill"):
        read = sum(number(s, "read") or 0 for s in _sources(figures).values())
        requests = number(figures, "training", "requests")
        did = f"read {read:,} rows"
        if requests is not None:
            did += f", computed the features of {requests:,} requests"
        yield "backfill", *_pace(read, number(figures, "seconds"), "rows"), did
    if figures := summary.get("train"):
        did, work = "trained and evaluated the model", None
        training = mapping(bundle.manifest, "training") if bundle is not None else {}
        rows = number(training, "rows", "train")
        epochs, runs = number(training, "epochs"), _trainings(bundle)
        if rows and epochs and runs:
            work = rows * epochs * runs
            did = f"{runs} trainings of {epochs} passes over {rows:,} rows, and their evaluation"
        yield "train", *_pace(work, number(figures, "seconds"), "rows"), did
    if figures := summary.get("stream"):
        events, requests = number(figures, "events"), number(figures, "requests")
        did = f"{write_value(events)} events and {write_value(requests)} requests"
        took, rate = _pace((events or 0) + (requests or 0), number(figures, "seconds"), "rows")
        if given := number(figures, "rows_per_s"):
            rate = f"{given:,.0f} rows/s"
        yield "stream", took, rate, did
    if figures := summary.get("verify"):
        values = number(figures, "values")
        did = f"compared {write_value(values)} values"
        yield "verify", *_pace(values, number(figures, "seconds"), "values"), did


def _pace(work: float | None, seconds: float | None, unit: str) -> tuple[str, str]:
    took = "-" if seconds is None else write_span(seconds * SECOND)
    return took, write_rate(work, seconds, unit)


def _trainings(bundle: Bundle | None) -> int:
    """Count the trained models: one per seed, with and without windowed features."""
    if bundle is None:
        return 0
    evaluation = bundle.evaluation
    return sum(len(runs["seeds"]) for runs in (evaluation["model"], *evaluation["baselines"]))


def count_table(stream: Mapping[str, Any]) -> Table | None:
    """Return the stream's counts; None before its first run."""
    rows = [
        (name.replace("_", " "), write_value(_total(stream[name])), meaning)
        for name, meaning in _COUNTS.items()
        if stream.get(name) is not None
    ]
    columns = ("count", "how many", "what it counts")
    return Table("", columns, rows, frozenset([1])) if rows else None


def _total(count: Any) -> Any:
    """Return a count, or the sum of counts by reason or by view."""
    return sum(count.values()) if isinstance(count, Mapping) else count


def _sources(backfill: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    sources = mapping(backfill, "sources")
    return {name: found for name, found in sources.items() if isinstance(found, Mapping)}


def source_table(backfill: Mapping[str, Any]) -> Table | None:
    """Return the rows read and kept of each source; None before the first backfill."""
    sources = _sources(backfill)
    if not sources:
        return None
    columns = ("read", "kept", "dropped", "rejected")
    rows = [
        (name, *(write_value(found.get(column, 0)) for column in columns))
        for name, found in sources.items()
    ]
    return Table("", ("source", *columns), rows, frozenset((1, 2, 3, 4)))


def reason_table(backfill: Mapping[str, Any]) -> Table | None:
    """Return the reasons of rejected records, the most frequent first; None without any."""
    counted = [
        (source, code, count)
        for source, found in _sources(backfill).items()
        for code, count in mapping(found, "reasons").items()
    ]
    counted.sort(key=lambda entry: (-entry[2], entry[:2]))
    meanings = {str(reason): reason.meaning for reason in Reason}
    rows = [(s, code, meanings.get(code, ""), write_value(count)) for s, code, count in counted]
    if not rows:
        return None
    return Table("", ("source", "reason", "what it means", "records"), rows, frozenset([3]))


def frontier_table(stream: Mapping[str, Any], end_us: int) -> Table | None:
    """Return each view's frontier at the end of the stream; None if there is none."""
    frontiers = mapping(stream, "frontiers_us")
    if not frontiers:
        return None
    rows = []
    for name, frontier in frontiers.items():
        behind = "nothing" if frontier >= end_us else write_span(end_us - frontier)
        rows.append((name, write_instant(frontier), behind))
    columns = ("view", "frontier", "short of the end of the period")
    return Table("", columns, rows, frozenset((1, 2)))
