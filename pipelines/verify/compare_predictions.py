"""Comparing the feature values of predictions, each recomputed bit for bit.

A value is recomputed *as complete*: from all original history at the prediction's own ``as_of``. If
it differs, it is recomputed *as seen*: from the history below the positions of the release that the
answer names. If that is equal, the value is *late*: the events between the two sets explain the
difference. In exact mode each of these events must have come behind the frontier. Any other
difference is a mismatch. In eager mode a value must also be equal as seen where an event came after
the request: a value that is equal as complete has used what it could not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import ARROW_TYPES, FeatureView, Request
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import UInt8Array
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.io.log import RECEIVED
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.sequence import arrivals
from tidemill.pipelines.verify.counterfactuals import Case, values_of_cases
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.pipelines.verify.served import Served, check_requests, column_of
from tidemill.pipelines.verify.source_history import EventsByKey, History, SourceHistory


@dataclass(frozen=True, eq=False)
class ViewVerdict:
    """The comparison of one view's values, for the predictions whose request is known.

    Attributes:
        events: The view's events.
        keys: The entity's key of each prediction, ``(rows,)``.
        as_of_us: int64, ``(rows,)``.
        arrived_us: int64, ``(rows,)``: when each request arrived
            (`pipelines.stream.sequence.arrivals`).
        shards: int64, ``(rows,)``: the shard that each answer names.
        releases: int64, ``(rows,)``: the release that each answer names.
        seen: Patterns and nulls of the served values, ``(rows, columns)``.
        complete: Patterns and nulls recomputed from all events, ``(rows, columns)``; where
            ``ahead``, from those that had been seen.
        late: bool, ``(rows, columns)``: explained by late events.
        wrong: bool, ``(rows, columns)``: mismatches.
        early: bool, ``(rows,)``: equal as seen, but an event that was not seen was not late.
        ahead: bool, ``(rows,)``: equal as complete, with events that came after the request.
    """

    events: EventsByKey
    keys: pa.Array
    as_of_us: Int64Array
    arrived_us: Int64Array
    shards: Int64Array
    releases: Int64Array
    seen: tuple[Int64Array, UInt8Array]
    complete: tuple[Int64Array, UInt8Array]
    late: BoolArray
    wrong: BoolArray
    early: BoolArray
    ahead: BoolArray

    @property
    def view(self) -> FeatureView:
        """The view."""
        return self.events.view

    def known_events(self, row: int, evidence: Evidence) -> Int64Array:
        """Return the events before a row's instant that its release had seen."""
        return self._seen(row, self.window(row), evidence)

    def events_at_its_instant(self, row: int, evidence: Evidence) -> Int64Array:
        """Return the events at a row's exact instant that its release had seen: none may count."""
        as_of = int(self.as_of_us[row])
        rows = self.events.window(self.keys[row].as_py(), as_of)
        return self._seen(row, rows[self.events.times[rows] == as_of], evidence)

    def _seen(self, row: int, rows: Int64Array, evidence: Evidence) -> Int64Array:
        seen = evidence.seen(
            self.view, int(self.shards[row]), int(self.releases[row]), int(self.arrived_us[row])
        )
        return rows if seen is None else self.events.seen(rows, seen)

    def window(self, row: int) -> Int64Array:
        """Return the events before a row's instant that its windows can hold."""
        as_of = int(self.as_of_us[row])
        rows = self.events.window(self.keys[row].as_py(), as_of)
        return rows[self.events.times[rows] < as_of]


def patterns(columns: Sequence[pa.Array]) -> tuple[Int64Array, UInt8Array]:
    """Return columns as 64-bit patterns (0 where null) and null flags, ``(rows, columns)``."""
    values = np.stack([hashing.bits(column) for column in columns], axis=1)
    nulls = np.stack([~hashing.validity(column) for column in columns], axis=1)
    return values, nulls.astype(np.uint8)


def request_arrivals(served: Served, request: Request) -> Int64Array:
    """Return when the request of each answer arrived, int64 ``(rows,)``."""
    return arrivals(
        hashing.bits(served.requests.column(request.request_time)),
        hashing.bits(served.requests.column(RECEIVED)),
    )


def differ(one: tuple[Int64Array, UInt8Array], other: tuple[Int64Array, UInt8Array]) -> BoolArray:
    """Return where two matrices of patterns and nulls differ: bool, ``(rows, columns)``."""
    different: BoolArray = (one[1] != other[1]) | ((one[1] == 0) & (one[0] != other[0]))
    return different


def compare_view(
    history: History,
    evidence: Evidence,
    served: Served,
    view: FeatureView,
    findings: Findings,
    arrived_us: Int64Array | None = None,
) -> ViewVerdict:
    """Recompute a view's values and compare them; note the stamps that are wrong.

    Args:
        history: The events of the view, at least all that the windows of these answers can hold.
        evidence: The releases that the answers name, and those before them.
        served: Answers with their requests.
        view: The view.
        findings: Takes wrong stamps; wrong values are left to the caller.
        arrived_us: int64, ``(rows,)``: of the events that a release took in eager mode, those count
            that arrived before; None for those that arrived before the requests.
    """
    request = history.project.request
    columns = []
    for column in view.columns:
        array = column_of(served.predictions, column.name)
        if array.type != ARROW_TYPES[column.dtype]:
            raise InputError(
                f"predictions: column {column.name!r} is {array.type}, expected "
                f"{ARROW_TYPES[column.dtype]}; they were made by other definitions: run "
                "`tidemill stream` again"
            )
        columns.append(array)
    as_of, releases, shards = (
        hashing.bits(column_of(served.predictions, f"{prefix}__{view.name}"))
        for prefix in ("as_of", "release", "shard")
    )
    events = EventsByKey(view, history.of(view))
    keys = served.requests.column(request.key_column(view.entity))
    seen = patterns(columns)
    values, nulls = values_at(view, events.rows, keys, as_of)
    complete = values.copy(), nulls.copy()
    different = differ(seen, complete)
    verdict = ViewVerdict(
        events,
        keys,
        as_of,
        request_arrivals(served, request) if arrived_us is None else arrived_us,
        shards,
        releases,
        seen,
        complete,
        late=np.zeros_like(different),
        wrong=different.copy(),
        early=np.zeros(len(as_of), np.bool_),
        ahead=np.zeros(len(as_of), np.bool_),
    )
    _check_stamps(request, evidence, served, verdict, findings)
    _judge_as_seen(history.of(view), evidence, verdict)
    return verdict


def _check_stamps(
    request: Request,
    evidence: Evidence,
    served: Served,
    verdict: ViewVerdict,
    findings: Findings,
) -> None:
    """Check that each answer names its shard, a release of it, and an instant that fits both."""
    view = verdict.view
    asked = hashing.bits(served.requests.column(request.request_time))
    frontiers = evidence.frontiers(view.name, verdict.shards, verdict.releases)
    ids = served.predictions.column("request_id")

    def note(what: str, rows: BoolArray, seen: Int64Array, expected: Any, cause: str) -> None:
        for row in np.flatnonzero(rows).tolist():
            as_of, right = int(verdict.as_of_us[row]), expected[row]
            right = right if isinstance(right, str) else field_text(what, int(right))
            findings.add(
                Mismatch(
                    what, ids[row].as_py(), view.name, "", as_of,
                    field_text(what, int(seen[row])), right, cause,
                )
            )  # fmt: skip

    hashes = hashing.key_bytes(verdict.keys)
    shards = hashing.shard_of(hashes, evidence.shards)
    if evidence.former is not None:  # such an answer was given by the stream before
        polls, former = evidence.former
        shards = np.where(verdict.releases <= polls, hashing.shard_of(hashes, former), shards)
    note(
        "shard", verdict.shards != shards, verdict.shards, shards,
        "the entity belongs to another shard",
    )  # fmt: skip
    note(
        "release", ~frontiers.known, verdict.releases, ["a release of the shard"] * len(ids),
        "there is no evidence of the release that the answer names",
    )  # fmt: skip
    if evidence.exact:
        right = np.maximum(asked, frontiers.before)
        wrong = (verdict.as_of_us != right) & frontiers.known
        cause = "an answer is for its request's time, or for the frontier before it if it was late"
    else:
        right = asked
        wrong = (verdict.as_of_us < asked) | (
            (verdict.as_of_us > np.maximum(asked, frontiers.own)) & frontiers.known
        )
        cause = "the instant is neither the request's time nor within what its release had seen"
    note("as_of", wrong, verdict.as_of_us, right, cause)


def _judge_as_seen(source: SourceHistory, evidence: Evidence, verdict: ViewVerdict) -> None:
    """Move differences that late events explain from ``wrong`` to ``late``.

    In eager mode, also note as ``wrong`` what equals the values as complete, but not as seen.
    """
    judged = verdict.wrong.any(axis=1)
    if not evidence.exact:
        newest = verdict.events.newest_arrivals(verdict.keys, verdict.as_of_us)
        judged |= newest >= verdict.arrived_us
    rows = np.flatnonzero(judged)
    rows = np.array(
        [
            row
            for row in rows.tolist()
            if (verdict.view.name, int(verdict.shards[row]), int(verdict.releases[row]))
            in evidence.releases
        ],
        np.int64,
    )
    if not len(rows):
        return
    known = [verdict.known_events(row, evidence) for row in rows.tolist()]
    cases = [
        Case(events, int(verdict.as_of_us[row]))
        for row, events in zip(rows.tolist(), known, strict=True)
    ]
    as_seen = values_of_cases(verdict.events, cases)
    seen = verdict.seen[0][rows], verdict.seen[1][rows]
    unequal = differ(seen, as_seen)
    explained = ~unequal & verdict.wrong[rows]
    ahead = np.flatnonzero((unequal & ~verdict.wrong[rows]).any(axis=1) & (not evidence.exact))
    for place in ahead.tolist():
        row = rows[place]
        verdict.ahead[row] = not verdict.wrong[row].any()
        verdict.wrong[row] = unequal[place]
        verdict.complete[0][row], verdict.complete[1][row] = as_seen[0][place], as_seen[1][place]
    behind = _came_late(source, evidence, verdict.events)
    for place, row in enumerate(rows.tolist()):
        between = np.setdiff1d(verdict.window(row), known[place])
        if explained[place].any() and not behind[between].all():
            verdict.early[row] = True
            explained[place] = False
    verdict.late[rows] = explained
    verdict.wrong[rows] &= ~explained


def _came_late(source: SourceHistory, evidence: Evidence, events: EventsByKey) -> BoolArray:
    """Return which events can have come behind a correct frontier: bool, ``(events,)``.

    A partition's watermark is the highest event time and time of receipt so far, less the stream's
    out-of-orderness. At the end of the stream it is the declared end.
    """
    if not evidence.exact:
        return np.ones(len(events.times), np.bool_)
    received = source.words(RECEIVED)
    watermark = source.known_before() - events.view.stream.out_of_orderness_us
    end_us = evidence.stream_until_us
    watermark[received >= end_us] = np.maximum(watermark[received >= end_us], end_us)
    behind: BoolArray = events.times < watermark
    return behind


def compare_predictions(
    history: History, evidence: Evidence, served: Served, progress: Progress, findings: Findings
) -> Iterator[ViewVerdict]:
    """Compare the values of every view; note wrong stamps, and leave wrong values to the caller."""
    project = history.project
    check_requests(project, served, findings)
    values = served.predictions.num_rows * len(project.columns)
    with progress.stage("recompute what predictions used", values, "values") as stage:
        for view in project.views:
            stage.note(view.name)
            yield compare_view(history, evidence, served, view, findings)
            stage.advance(served.predictions.num_rows * len(view.columns))
