"""The likely cause of a wrong value.

Each hypothesis is tested by recomputing the values that it implies
(`pipelines.verify.counterfactuals`). If they equal the served values bit for bit, the hypothesis is
reported with its events:

* **ahead**: in eager mode, events were counted that came after the request;
* **same instant**: an event at the request's own instant was counted;
* **lost**: the events of one release were not counted;
* **stale**: the events of several successive releases were not counted: an older state was used;
* **doubled**: the events of one release were counted twice;
* **flipped bit**: no other hypothesis fits, and one bit differs.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import BOOL, FLOAT64
from tidemill.features.kernel.columns import UInt8Array
from tidemill.pipelines.verify.compare_predictions import ViewVerdict, differ
from tidemill.pipelines.verify.counterfactuals import Case, values_of_cases
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import value_text
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.pipelines.verify.served import Served

_RELEASES_TRIED: Final = 24
"""How many of the newest releases with events of the entity are tried."""
_IDS_NAMED: Final = 5

EARLY: Final = (
    "answered before the frontier had passed: equal to what was seen by then, but the events that "
    "came after were not late"
)
UNKNOWN: Final = "unknown: no lost, stale, doubled or too new event explains it"


class Kind(enum.StrEnum):
    """The hypothesis that explains a wrong value."""

    EARLY = "early"
    AHEAD = "ahead"
    SAME_INSTANT = "same instant"
    LOST = "lost"
    STALE = "stale"
    DOUBLED = "doubled"
    FLIPPED = "flipped bit"
    UNKNOWN = "unknown"


class Diagnosis(NamedTuple):
    """The cause of a wrong value.

    Attributes:
        kind: The hypothesis.
        text: The same in words, with the first events.
        events: int64: the events to blame, as rows of the verdict's events.
    """

    kind: Kind
    text: str
    events: Int64Array


_NONE: Final = np.zeros(0, np.int64)


def note_wrong_values(
    verdict: ViewVerdict,
    evidence: Evidence,
    served: Served,
    findings: Findings,
    listed: int,
    what: str = "value",
) -> None:
    """Count a view's wrong values, and diagnose the first of them.

    Args:
        verdict: The comparison.
        evidence: The releases.
        served: What was compared.
        findings: Takes the mismatches.
        listed: So many mismatches are diagnosed.
        what: What the values are of (`Mismatch.what`).
    """
    wrong_rows = np.flatnonzero(verdict.wrong.any(axis=1)).tolist()
    ids = served.predictions.column("request_id")
    columns = verdict.view.columns
    for row in wrong_rows:
        wrong = np.flatnonzero(verdict.wrong[row]).tolist()
        wrong = findings.without_excused(wrong, columns, int(verdict.as_of_us[row]))
        if not wrong:
            continue
        room = listed - len(findings.listed)
        if room <= 0:
            findings.count_more(what, len(wrong))
            continue
        found = diagnose(verdict, evidence, row)
        for column in wrong[:room]:
            dtype = columns[column].dtype
            findings.add(
                Mismatch(
                    what,
                    ids[row].as_py(),
                    verdict.view.name,
                    columns[column].name,
                    int(verdict.as_of_us[row]),
                    written(verdict.seen, row, column, dtype),
                    written(verdict.complete, row, column, dtype),
                    found.text,
                    found.kind,
                    str(verdict.keys[row].as_py()),
                    tuple(places(verdict, found.events)),
                )
            )
        findings.count_more(what, len(wrong) - len(wrong[:room]), found.kind)


def written(matrix: tuple[Int64Array, UInt8Array], row: int, column: int, dtype: str) -> str:
    """Format a value of a matrix of patterns (`pipelines.verify.instants.value_text`)."""
    values, nulls = matrix
    if nulls[row, column]:
        return "null"
    word = values[row, column : column + 1]
    if dtype == FLOAT64:
        return value_text(float(word.view(np.float64)[0]), dtype)
    number = int(word[0])
    return value_text(bool(number) if dtype == BOOL and number in (0, 1) else number, dtype)


def diagnose(verdict: ViewVerdict, evidence: Evidence, row: int) -> Diagnosis:
    """Return the cause of the wrong values of a row."""
    if verdict.early[row]:
        return Diagnosis(Kind.EARLY, EARLY, _unseen(verdict, evidence, row))
    if verdict.ahead[row]:
        unseen = _unseen(verdict, evidence, row)
        said = f"ahead: {_named(verdict, unseen)} counted, which came after the request"
        return Diagnosis(Kind.AHEAD, said, unseen)
    hypotheses = list(_hypotheses(verdict, evidence, row))
    values, nulls = values_of_cases(verdict.events, [case for _, case in hypotheses])
    wrong = verdict.wrong[row]
    seen = verdict.seen[0][row : row + 1], verdict.seen[1][row : row + 1]
    fits = ~differ(seen, (values, nulls))[:, wrong].any(axis=1)
    for place in np.flatnonzero(fits).tolist():
        return hypotheses[place][0]
    if _one_bit(verdict, row):
        return Diagnosis(Kind.FLIPPED, "flipped bit: the value seen differs in one bit", _NONE)
    return Diagnosis(Kind.UNKNOWN, UNKNOWN, _NONE)


def _unseen(verdict: ViewVerdict, evidence: Evidence, row: int) -> Int64Array:
    unseen: Int64Array = np.setdiff1d(verdict.window(row), verdict.known_events(row, evidence))
    return unseen


def _one_bit(verdict: ViewVerdict, row: int) -> bool:
    columns = np.flatnonzero(verdict.wrong[row])
    if len(columns) != 1 or verdict.seen[1][row, columns[0]]:
        return False
    words = (verdict.seen[0][row, columns[0]], verdict.complete[0][row, columns[0]])
    return (int(words[0]) ^ int(words[1])).bit_count() == 1


def _hypotheses(
    verdict: ViewVerdict, evidence: Evidence, row: int
) -> Iterator[tuple[Diagnosis, Case]]:
    as_of = int(verdict.as_of_us[row])
    known = verdict.known_events(row, evidence)
    now = verdict.events_at_its_instant(row, evidence)
    named = f"same instant: {_named(verdict, now)} at the request's own instant was counted"
    if not len(now):
        named = "same instant: computed for an instant 1 us later"
    yield Diagnosis(Kind.SAME_INSTANT, named, now), Case(np.concatenate([known, now]), as_of + 1)
    shard, number = int(verdict.shards[row]), int(verdict.releases[row])
    taken_in, applied = _by_release(verdict, evidence, known, shard, number)
    for what, groups in (("taken in", taken_in), ("applied", applied)):
        for run in _runs(groups):
            lost = np.concatenate([rows for _, rows in run])
            yield _lost(verdict, what, run, lost, shard), Case(np.setdiff1d(known, lost), as_of)
    for release, rows in taken_in:
        named = (
            f"doubled: {_named(verdict, rows)} of release {release} of shard {shard} counted twice"
        )
        yield Diagnosis(Kind.DOUBLED, named, rows), Case(known, as_of, twice=rows)


Groups = list[tuple[int, Int64Array]]
"""Events by release, in order."""


def _runs(groups: Groups) -> Iterator[Groups]:
    """Yield every run of successive groups, short runs first."""
    for length in range(1, len(groups) + 1):
        for first in range(len(groups) - length + 1):
            yield groups[first : first + length]


def _lost(verdict: ViewVerdict, what: str, run: Groups, lost: Int64Array, shard: int) -> Diagnosis:
    named = _named(verdict, lost)
    if len(run) == 1:
        by = f"{what} by release {run[0][0]} of shard {shard}"
        return Diagnosis(Kind.LOST, f"lost: {named}, {by}, not counted", lost)
    by = f"{what} by releases {run[0][0]} to {run[-1][0]} of shard {shard}"
    said = f"stale: {named}, {by}, not counted: an older state was used"
    return Diagnosis(Kind.STALE, said, lost)


def _by_release(
    verdict: ViewVerdict, evidence: Evidence, rows: Int64Array, shard: int, number: int
) -> tuple[Groups, Groups]:
    """Group events by the release that received them, and by the release that applied them.

    If a batch was lost, events that were received together are missing; if an old state was used,
    the events applied since then are missing. An event is applied once it is received and the
    frontier has passed it. The handed-over state is release 0.
    """
    steps = evidence.steps(verdict.view, shard, number)
    taken = np.full(len(rows), -1, np.int64)
    for place in reversed(range(len(steps))):
        taken[np.isin(rows, verdict.events.below(rows, steps[place][2]))] = place
    frontiers = np.array([frontier for _, frontier, _ in steps], np.int64)
    passed = np.searchsorted(frontiers, verdict.events.times[rows], "right")
    applied = np.where(taken < 0, -1, np.maximum(taken, passed))
    return tuple(
        [
            (steps[place][0], rows[by == place])
            for place in np.unique(by).tolist()
            if 0 <= place < len(steps)
        ][-_RELEASES_TRIED:]
        for by in (taken, applied)
    )  # type: ignore[return-value]


def _named(verdict: ViewVerdict, rows: Int64Array) -> str:
    ids = verdict.events.ids(rows[:_IDS_NAMED])
    more = f" and {len(rows) - _IDS_NAMED} more" if len(rows) > _IDS_NAMED else ""
    what = "event" if len(rows) == 1 else "events"
    places = [
        f"{verdict.view.stream.name}/{verdict.events.partitions[row]}:"
        f"{verdict.events.positions[row]}"
        for row in rows[:1].tolist()
    ]
    where = f" (from {places[0]})" if places else ""
    return f"{what} {', '.join(ids)}{more}{where}"


def late_rows(verdict: ViewVerdict, evidence: Evidence, row: int) -> Int64Array:
    """Return the events that explain a row's late values: int64, rows of the verdict's events."""
    return _unseen(verdict, evidence, row)


def late_events(verdict: ViewVerdict, evidence: Evidence, row: int) -> list[str]:
    """Return the ids of the events that explain a row's late values."""
    return verdict.events.ids(late_rows(verdict, evidence, row))


def places(verdict: ViewVerdict, rows: Int64Array) -> list[str]:
    """Return the first of some events as id, source, partition and position."""
    events, stream = verdict.events, verdict.view.stream.name
    rows = rows[:_IDS_NAMED]
    return [
        f"{id} ({stream}/{events.partitions[row]}:{events.positions[row]})"
        for id, row in zip(events.ids(rows), rows.tolist(), strict=True)
    ]
