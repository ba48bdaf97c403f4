"""The proof of what predictions used: every feature value recomputed and compared bit for bit.

Two verdicts (DESIGN: evidence). *As complete*: the value from the whole original history at the
prediction's own ``as_of``. Where that differs, *as seen*: the value from the history below the
positions of the release that the answer names. If that is equal, the difference is *late*: it is
explained by the events between the two sets, each of which, in exact mode, must really have come
behind the frontier. Everything else is a mismatch.

The requests that must have been answered are those of the original history, less the ones that
stand among the rejected records; a missing, an extra or a doubled prediction is as many
mismatches as there are features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import ARROW_TYPES, FeatureView, Project
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import UInt8Array
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, one_batch
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.answer_parts import group_of
from tidemill.pipelines.verify.counterfactuals import Case, values_of_cases
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.pipelines.verify.source_history import EventsByKey, History
from tidemill.serving.files.read_files import read_table, reading

LISTED: Final = 20
"""How many mismatches are kept with all they say; the others are counted."""
_MEND: Final = "run `tidemill stream` again"


@dataclass(frozen=True)
class Mismatch:
    """Something that was served and is not what it should be.

    Attributes:
        what: ``value``, ``as_of``, ``release``, ``shard``, ``request``, ``missing``, ``extra``,
            ``doubled``, ``oracle`` or ``store``.
        id: The request's id, or the entity's key.
        view: The view; empty where it is about the whole prediction.
        feature: The feature column.
        as_of_us: The instant.
        seen: What was seen.
        expected: What should be.
        cause: How it came about, as far as that can be told.
    """

    what: str
    id: str
    view: str = ""
    feature: str = ""
    as_of_us: int | None = None
    seen: str = ""
    expected: str = ""
    cause: str = ""


@dataclass
class Findings:
    """Mismatches: all are counted, the first are kept."""

    count: int = 0
    listed: list[Mismatch] = field(default_factory=list)

    def add(self, mismatch: Mismatch, count: int = 1) -> None:
        """Count a mismatch, as often as there are values in it."""
        self.count += count
        if len(self.listed) < LISTED:
            self.listed.append(mismatch)

    def merge(self, other: Findings) -> None:
        """Add another's."""
        self.count += other.count
        self.listed = [*self.listed, *other.listed][:LISTED]


@dataclass(frozen=True, eq=False)
class Served:
    """Predictions beside the requests of the original history.

    Attributes:
        predictions: Those whose request is known, ``(rows,)``.
        requests: The request of each, ``(rows,)``.
        count: How many predictions there are in all.
        expected: How many requests should have been answered.
        unanswered: How many were rejected instead.
    """

    predictions: pa.RecordBatch
    requests: pa.RecordBatch
    count: int
    expected: int
    unanswered: int


@dataclass(frozen=True, eq=False)
class ViewVerdict:
    """What was found about one view's values of the predictions that could be compared.

    Attributes:
        events: The view's events.
        keys: The entity's key of each prediction, ``(rows,)``.
        as_of_us: int64, ``(rows,)``.
        shards: int64, ``(rows,)``: the shard that each answer names.
        releases: int64, ``(rows,)``: the release that each answer names.
        seen: Patterns and nulls that were used, ``(rows, columns)``.
        complete: Patterns and nulls as complete, ``(rows, columns)``.
        late: bool, ``(rows, columns)``: explained by late events.
        wrong: bool, ``(rows, columns)``: mismatches.
        early: bool, ``(rows,)``: equal as seen, but the events that came after were not late.
    """

    events: EventsByKey
    keys: pa.Array
    as_of_us: Int64Array
    shards: Int64Array
    releases: Int64Array
    seen: tuple[Int64Array, UInt8Array]
    complete: tuple[Int64Array, UInt8Array]
    late: BoolArray
    wrong: BoolArray
    early: BoolArray

    @property
    def view(self) -> FeatureView:
        """The view."""
        return self.events.view

    def known_events(self, row: int, evidence: Evidence) -> Int64Array:
        """Return the events before a row's instant that its release had seen."""
        return self._seen(row, self.window(row), evidence)

    def events_at_its_instant(self, row: int, evidence: Evidence) -> Int64Array:
        """Return the events at a row's very instant that its release had seen: none may count."""
        as_of = int(self.as_of_us[row])
        rows = self.events.window(self.keys[row].as_py(), as_of)
        return self._seen(row, rows[self.events.times[rows] == as_of], evidence)

    def _seen(self, row: int, rows: Int64Array, evidence: Evidence) -> Int64Array:
        positions = evidence.positions(self.view, int(self.shards[row]), int(self.releases[row]))
        return rows if positions is None else self.events.below(rows, positions)

    def window(self, row: int) -> Int64Array:
        """Return the events before a row's instant that its windows can hold."""
        as_of = int(self.as_of_us[row])
        rows = self.events.window(self.keys[row].as_py(), as_of)
        return rows[self.events.times[rows] < as_of]


def read_predictions(config: Configuration) -> pa.Table:
    """Read the predictions of a run.

    Raises:
        InputError: There are none.
    """
    files = sorted((config.root / paths.PREDICTIONS).glob("*.parquet"))
    if not files:
        raise InputError(
            f"there are no predictions in {config.root / paths.PREDICTIONS}; run `tidemill stream`"
        )
    needed = {"request_id", "request_time", "partition", "position", "received_us", "score"}
    for view in config.project.views:
        needed |= {f"{stamp}__{view.name}" for stamp in ("as_of", "shard", "release")}
    tables = []
    for path in files:
        tables.append(read_table(path, _MEND))
        if lacking := sorted(needed - set(tables[-1].column_names)):
            raise InputError(
                f"{path}: there is no column {lacking[0]!r}; it was made by other definitions: "
                "run `tidemill stream` again"
            )
    with reading(config.root / paths.PREDICTIONS, _MEND):
        return pa.concat_tables(tables)


def serve_beside_requests(
    config: Configuration, history: History, predictions: pa.Table, findings: Findings
) -> Served:
    """Find the request of each prediction; what is missing, extra or doubled is a mismatch."""
    project = config.project
    request = project.request
    features = len(project.columns)
    splits = config.splits
    asked = history.requests.received_in(splits.evaluate_until_us, splits.stream_until_us)
    asked_places = _places(asked, PARTITION, POSITION)
    refused = np.isin(asked_places, _rejected_places(config.root, request.name))
    order = np.argsort(asked_places, kind="stable")
    places = _places(predictions, "partition", "position")
    found = np.searchsorted(asked_places[order], places)
    row = order[np.minimum(found, max(len(order) - 1, 0))] if len(order) else found * 0
    known = (asked_places[row] == places) if len(order) else np.zeros(len(places), np.bool_)
    ids = one_batch(predictions.select(["request_id"])).column(0)
    asked_ids = one_batch(asked.select([request.request_id])).column(0).cast(pa.string())
    if known.any():
        same = pc.equal(ids, asked_ids.take(pa.array(np.where(known, row, 0))))
        known &= same.fill_null(False).to_numpy(zero_copy_only=False) & ~refused[row]
    for id in ids.filter(pa.array(~known)).to_pylist():
        cause = "no request of the original history, received while the stream ran, has this place"
        findings.add(
            Mismatch("extra", id, seen="a prediction", expected="none", cause=cause), features
        )
    first = np.zeros(len(places), np.bool_)
    first[np.unique(places, return_index=True)[1]] = True
    for id in ids.filter(pa.array(known & ~first)).to_pylist():
        findings.add(
            Mismatch("doubled", id, seen="more than one prediction", expected="one"), features
        )
    answered = np.zeros(len(asked), np.bool_)
    answered[row[known]] = True
    for id in asked_ids.filter(pa.array(~answered & ~refused)).to_pylist():
        cause = "neither a prediction nor a rejected record"
        findings.add(
            Mismatch("missing", id, seen="no prediction", expected="one", cause=cause), features
        )
    kept = np.flatnonzero(known & first)
    return Served(
        predictions=one_batch(predictions.take(pa.array(kept))),
        requests=one_batch(asked.take(pa.array(row[kept]))),
        count=len(predictions),
        expected=int((~refused).sum()),
        unanswered=int(refused.sum()),
    )


def _places(table: pa.Table, partition: str, position: str) -> Int64Array:
    batch = one_batch(table.select([partition, position]))
    partitions, positions = (hashing.bits(column) for column in batch.columns)
    base = np.array([group_of(p, 0) for p in range(int(partitions.max(initial=0)) + 1)], np.int64)
    return base[partitions] + positions


def _rejected_places(root: Path, request: str) -> Int64Array:
    """Return the places of the requests that the stream rejected instead of answering."""
    places = [np.zeros(0, np.int64)]
    for path in sorted((root / paths.REJECTED_BY_STREAM).glob("*.parquet")):
        table = read_table(path, _MEND)
        mine = table.filter(pc.equal(table["stream"], request))
        places.append(_places(mine, "partition", "position"))
    return np.concatenate(places)


def check_requests(project: Project, served: Served, findings: Findings) -> None:
    """Compare the time and the inputs that predictions carry with their requests'."""
    requests = served.requests.select(list(project.request.schema))
    expected = {
        "request_time": requests.column(project.request.request_time),
        **{name: e.evaluate(requests) for name, e in project.request.inputs.items()},
    }
    ids = served.predictions.column("request_id")
    for name, column in expected.items():
        seen = _column(served.predictions, name)
        if seen.type != column.type:
            raise InputError(
                f"predictions: column {name!r} is {seen.type}, the project says {column.type}; "
                "they were made by other definitions: run `tidemill stream` again"
            )
        both_null = pc.and_(pc.is_null(seen), pc.is_null(column))
        same = pc.or_(pc.fill_null(pc.equal(seen, column), False), both_null)
        for row in np.flatnonzero(~same.to_numpy(zero_copy_only=False)).tolist():
            findings.add(
                Mismatch(
                    "request",
                    ids[row].as_py(),
                    feature=name,
                    seen=str(seen[row].as_py()),
                    expected=str(column[row].as_py()),
                    cause="the prediction was made for another input than the request's",
                )
            )


def _column(predictions: pa.RecordBatch, name: str) -> pa.Array:
    if name not in predictions.schema.names:
        raise InputError(
            f"predictions: there is no column {name!r}; they were made by other definitions: "
            "run `tidemill stream` again"
        )
    return predictions.column(name)


def patterns(columns: Sequence[pa.Array]) -> tuple[Int64Array, UInt8Array]:
    """Return columns as 64-bit patterns (0 where null) and null flags, ``(rows, columns)``."""
    values = np.stack([hashing.bits(column) for column in columns], axis=1)
    nulls = np.stack([~hashing.validity(column) for column in columns], axis=1)
    return values, nulls.astype(np.uint8)


def differ(one: tuple[Int64Array, UInt8Array], other: tuple[Int64Array, UInt8Array]) -> BoolArray:
    """Tell where two matrices of patterns and nulls differ: bool, ``(rows, columns)``."""
    different: BoolArray = (one[1] != other[1]) | ((one[1] == 0) & (one[0] != other[0]))
    return different


def compare_view(
    config: Configuration,
    history: History,
    evidence: Evidence,
    served: Served,
    view: FeatureView,
    findings: Findings,
) -> ViewVerdict:
    """Recompute a view's values and compare; stamps that are wrong are found here too.

    Args:
        config: The configuration.
        history: The original history.
        evidence: The releases.
        served: The predictions.
        view: The view.
        findings: Where wrong stamps are noted; wrong values are left to the caller, who knows
            more about them.
    """
    columns = []
    for column in view.columns:
        array = _column(served.predictions, column.name)
        if array.type != ARROW_TYPES[column.dtype]:
            raise InputError(
                f"predictions: column {column.name!r} is {array.type}, expected "
                f"{ARROW_TYPES[column.dtype]}; they were made by other definitions: run "
                "`tidemill stream` again"
            )
        columns.append(array)
    as_of, releases, shards = (
        hashing.bits(_column(served.predictions, f"{prefix}__{view.name}"))
        for prefix in ("as_of", "release", "shard")
    )
    events = EventsByKey(view, history.of(view))
    keys = served.requests.column(config.project.request.key_column(view.entity))
    seen = patterns(columns)
    complete = values_at(view, events.rows, keys, as_of)
    different = differ(seen, complete)
    verdict = ViewVerdict(
        events,
        keys,
        as_of,
        shards,
        releases,
        seen,
        complete,
        late=np.zeros_like(different),
        wrong=different.copy(),
        early=np.zeros(len(as_of), np.bool_),
    )
    _check_stamps(config, evidence, served, verdict, findings)
    _judge_as_seen(config, history, evidence, verdict)
    return verdict


def _check_stamps(
    config: Configuration,
    evidence: Evidence,
    served: Served,
    verdict: ViewVerdict,
    findings: Findings,
) -> None:
    """An answer must name its shard, a release of it, and an instant that this release explains."""
    view, request = verdict.view, config.project.request
    asked = hashing.bits(served.requests.column(request.request_time))
    frontiers = evidence.frontiers(view.name, verdict.shards, verdict.releases)
    ids = served.predictions.column("request_id")

    def note(what: str, rows: BoolArray, seen: Int64Array, expected: Any, cause: str) -> None:
        for row in np.flatnonzero(rows).tolist():
            as_of = int(verdict.as_of_us[row])
            findings.add(
                Mismatch(
                    what, ids[row].as_py(), view.name, "", as_of,
                    str(seen[row]), str(expected[row]), cause,
                )
            )  # fmt: skip

    shards = hashing.shard_of(hashing.key_bytes(verdict.keys), config.shards)
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


def _judge_as_seen(
    config: Configuration, history: History, evidence: Evidence, verdict: ViewVerdict
) -> None:
    """Take the differences that late events explain out of ``wrong``."""
    rows = np.flatnonzero(verdict.wrong.any(axis=1))
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
    explained = ~differ(seen, as_seen) & verdict.wrong[rows]
    behind = _came_late(config, history, evidence, verdict.events)
    for place, row in enumerate(rows.tolist()):
        between = np.setdiff1d(verdict.window(row), known[place])
        if explained[place].any() and not behind[between].all():
            verdict.early[row] = True
            explained[place] = False
    verdict.late[rows] = explained
    verdict.wrong[rows] &= ~explained


def _came_late(
    config: Configuration, history: History, evidence: Evidence, events: EventsByKey
) -> BoolArray:
    """Tell which events of a stream could have come behind an honest frontier.

    A partition's watermark trails what it has shown, and the time of receipt, by the stream's
    out-of-orderness. Where the stream ended, its frontier was declared.
    """
    if not evidence.exact:
        return np.ones(len(events.times), np.bool_)
    source = history.of(events.view)
    received = source.words(RECEIVED)
    watermark = np.array(received, copy=True)
    for partition in np.unique(events.partitions).tolist():
        rows = np.flatnonzero(events.partitions == partition)
        rows = rows[np.argsort(events.positions[rows], kind="stable")]
        highest = np.maximum.accumulate(events.times[rows])
        watermark[rows[1:]] = np.maximum(watermark[rows[1:]], highest[:-1])
    watermark -= events.view.stream.out_of_orderness_us
    end_us = config.splits.stream_until_us
    watermark[received >= end_us] = np.maximum(watermark[received >= end_us], end_us)
    behind: BoolArray = events.times < watermark
    return behind


def compare(
    config: Configuration,
    history: History,
    evidence: Evidence,
    served: Served,
    progress: Progress,
    findings: Findings,
) -> Iterator[ViewVerdict]:
    """Compare the values of every view, one after the other."""
    check_requests(config.project, served, findings)
    values = served.predictions.num_rows * len(config.project.columns)
    with progress.stage("recompute what predictions used", values, "values") as stage:
        for view in config.project.views:
            stage.note(view.name)
            yield compare_view(config, history, evidence, served, view, findings)
            stage.advance(served.predictions.num_rows * len(view.columns))
