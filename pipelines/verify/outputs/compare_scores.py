"""Comparing what a prediction says beside features: its score, its versions, its stamps.

A score is computed again by the bundle that the prediction names, from the values that the releases
give, in the same row of a call of the same padded shape. Where the call was made as this process
makes it (device, TensorFlow's version, XLA), the bytes must be equal. Scores that were made
elsewhere may differ in their last bits; they are counted apart, and must be equal within
`TOLERANCE`. The predictions of a stream without a model must have no score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import Project
from tidemill.features.errors import BundleError, InputError
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import PARTITION, POSITION, one_batch
from tidemill.pipelines.stream import infer
from tidemill.pipelines.stream.infer import scored
from tidemill.pipelines.stream.output_folders import STAMPS
from tidemill.pipelines.stream.rejected_by_stream import unscored_requests
from tidemill.pipelines.stream.scored_by import decision_of
from tidemill.pipelines.verify.findings import Findings, Mismatch, excused_until
from tidemill.pipelines.verify.outputs.call_rows import (
    UNKNOWN_ROW,
    calls_with_others,
    rows_of_calls,
)
from tidemill.pipelines.verify.outputs.differences import differing, shown
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.serving.bundles.current import BUNDLES
from tidemill.serving.bundles.inference import Scorer
from tidemill.serving.models.buckets import MAX_ROWS, padded_rows

TOLERANCE: Final = 1e-4
"""How far scores may be apart that two kinds of devices compute, absolutely."""

_CALL: Final = ("device", "tensorflow", "xla")
"""The stamps that say how a call was made."""
_SCORED: Final = ("score", "bundle_version", "transform_hash", "padded_rows", "call_row", *_CALL)
"""What is null in the predictions of a stream without a model."""
_ANOTHER: Final = "the stream had another bundle score the requests of this place"
_CAUSES: Final = {
    "score": "the bundle gives another score for the values that the releases give",
    "bundle_version": _ANOTHER,
    "transform_hash": "the bundle's transform has another hash",
    "spec_hash": "the bundle was trained for other definitions",
    "padded_rows": "the call that scored it had another shape",
    "call_row": "it was another row of the call that scored it",
    "partition": "the request is of another partition",
    "position": "the request is at another position",
    "received_us": "the request was received at another time",
}


NEAREST: Final = 10
"""So many scores that differ in their last bits are kept."""


class Near(NamedTuple):
    """A score that another kind of call has made, and that differs in its last bits.

    Attributes:
        request_id: The id of the request.
        partition: Its partition in the log.
        position: Its position there.
        seen: The score.
        expected: The score that this process gives.
        why: By what each was made.
    """

    request_id: str
    partition: int
    position: int
    seen: str
    expected: str
    why: str


class PredictionCheck:
    """Compares the predictions of a stream with what its polls give, but for ids and features.

    Args:
        root: The root; it has the bundles.
        project: The project.
        found: The predictions.
        findings: Takes the mismatches.
        is_scored: Whether the stream had a model.
        models: Which bundles score, from which positions on (`StreamRun.models`); None if the
            stream has recorded none: then a prediction is believed which one has scored it.
        has_forgotten: Whether requests were forgotten: they were in calls, which have fewer rows
            when they are repeated.

    Attributes:
        scores: How many scores were compared.
        elsewhere: How many of them were made otherwise than this process makes them.
        near: How many of these differ, and no more than kinds of devices do.
        nearest: The first of those.
    """

    def __init__(
        self,
        root: Path,
        project: Project,
        found: pa.Table,
        findings: Findings,
        *,
        is_scored: bool = True,
        models: Sequence[Mapping[str, Any]] | None = None,
        has_forgotten: bool = False,
    ) -> None:
        self._root, self._project, self._findings = root, project, findings
        self._found, self._is_scored = one_batch(found), is_scored
        self._has_forgotten, self._models = has_forgotten, models or ()
        places = places_of(self._found, "partition", "position")
        self._order = np.argsort(places, kind="stable")
        self._places = places[self._order]
        self._scorers: dict[str, Scorer | str] = {}
        self._inputs = [*project.request.inputs, *(column.name for column in project.columns)]
        self.scores = self.elsewhere = self.near = 0
        self.nearest: list[Near] = []
        # Ids, inputs and features are compared with the sources (`compare_predictions`).
        self._elsewhere_checked = {"request_id", "request_time", *STAMPS}
        self._elsewhere_checked |= {*project.request.inputs}
        self._elsewhere_checked |= {column.name for column in project.columns}

    def take(self, answered: pa.RecordBatch, refused_by: str | None = None) -> list[pa.RecordBatch]:
        """Compare the predictions for some answered requests, which are one call of the bundle.

        Args:
            answered: The requests.
            refused_by: The version of the bundle that has refused one of them, as its record says.

        Returns:
            The requests that the bundle refuses, as rejected records.
        """
        wanted = places_of(answered, PARTITION, POSITION)
        at = np.searchsorted(self._places, wanted)
        there: BoolArray = np.zeros(len(wanted), np.bool_)
        inside = at < len(self._places)
        there[inside] = self._places[at[inside]] == wanted[inside]
        if not there.any() and refused_by is None:
            return []  # a missing prediction is noted elsewhere
        found = self._found.take(pa.array(self._order[at[there]]))
        version = self._decided(answered)
        if version is None:
            said = _most_frequent(found.column("bundle_version")) if there.any() else refused_by
            version = str(said)
        scorer = self._scorer(version) if self._is_scored else None
        if isinstance(scorer, str):
            self._note_all(found, "bundle_version", version, "a bundle of this root", scorer)
            return []
        made = scored(self._project, scorer, answered, 0)
        refused = unscored_requests(self._project.request, answered, made.refused, version)
        expected = made.predictions
        if scorer is not None and excused_until():
            expected = self._with_forgotten(found, expected, there, scorer)
        expected = expected.filter(pa.array(there))
        if scorer is not None and self._has_forgotten:
            expected = self._beside_forgotten(found, expected, scorer)
        self.scores += found.num_rows if self._is_scored else 0
        if found.num_rows:
            self._compare(found, expected, scorer)
        return refused

    def _decided(self, answered: pa.RecordBatch) -> str | None:
        """Return the bundle that has to score the requests of a poll; None if that is not known."""
        places = (hashing.bits(answered.column(name))[:1] for name in (PARTITION, POSITION))
        version: str | None = self._decisions(*places)[0].as_py()
        return version

    def _decisions(self, partitions: Int64Array, positions: Int64Array) -> pa.Array:
        """Return the bundle that has to score each request; null where that is not known."""
        if not self._models:
            return pa.nulls(len(positions), pa.string())
        since = [made["positions"] for made in self._models]
        bundles = pa.array([made["bundle"] for made in self._models], pa.string())
        return bundles.take(pa.array(decision_of(since, partitions, positions)))

    def _check_decided(self) -> None:
        """Check that predictions name the bundles that were to score them."""
        places = (hashing.bits(self._found.column(name)) for name in ("partition", "position"))
        seen, right = self._found.column("bundle_version"), self._decisions(*places)
        is_known = right.is_valid().to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(differing(seen, right) & is_known).tolist():
            self._findings.add(
                Mismatch(
                    "score", self._found.column("request_id")[row].as_py(), "", "bundle_version",
                    seen=str(seen[row]), expected=str(right[row]), cause=_ANOTHER,
                )
            )  # fmt: skip

    def _with_forgotten(
        self, found: pa.RecordBatch, expected: pa.RecordBatch, there: BoolArray, scorer: Scorer
    ) -> pa.RecordBatch:
        """Return what is expected, scored with the values that cannot be recomputed any more.

        What those were before something was forgotten, the predictions say alone.

        Args:
            found: The predictions.
            expected: What is expected of all requests of the call.
            there: Which of these have a prediction, bool ``(rows,)``.
            scorer: Scores the call.
        """
        replaced = {}
        places = np.maximum(np.cumsum(there) - 1, 0)
        for view in self._project.views:
            as_of = hashing.bits(expected.column(f"as_of__{view.name}"))
            for name in (column.name for column in view.columns):
                if (until_us := excused_until().get(name)) is None:
                    continue
                is_forgotten = pa.array(there & (as_of <= until_us))
                served = found.column(name).take(pa.array(places))
                replaced[name] = pc.if_else(is_forgotten, served, expected.column(name))
        if not replaced:
            return expected
        inputs = _with_columns(expected, replaced)
        return _with_columns(inputs, {"score": self._score(scorer, inputs)})

    def _beside_forgotten(
        self, found: pa.RecordBatch, expected: pa.RecordBatch, scorer: Scorer
    ) -> pa.RecordBatch:
        """Return what is expected, scored in calls that had further rows, if they can have been."""
        said, padded = (found.column(name) for name in ("call_row", "padded_rows"))
        own = expected.column("call_row")
        if said.equals(own) and padded.equals(expected.column("padded_rows")):
            return expected
        if pc.all(pc.equal(said, UNKNOWN_ROW)).as_py():  # of an earlier version
            shape = pc.max_element_wise(padded, expected.column("padded_rows"))
            return _with_columns(expected, {"padded_rows": shape})
        if (calls := calls_with_others(said, padded, own)) is None:
            return expected
        scores, start = [], 0
        for shape, rows in calls:
            whole = np.full(shape, start)
            whole[rows] = np.arange(start, start + len(rows))
            score = self._score(scorer, expected.take(pa.array(whole)))
            scores.append(score.take(pa.array(rows)))
            start += len(rows)
        score = pa.concat_arrays(scores)
        columns = {"score": score, "call_row": said, "padded_rows": padded}
        return _with_columns(expected, columns)

    def take_served(self) -> None:
        """Compare the scores of all predictions with those that the bundle gives their features.

        Each is scored as it was: in the same row of a call of the same padded shape.
        """
        if not self._is_scored:
            rows = self._found
            empty = {name: pa.nulls(len(rows), rows.column(name).type) for name in _SCORED}
            self._compare(rows, _with_columns(rows, empty), None)
            return
        self._check_decided()
        names = ("bundle_version", *_CALL, "padded_rows")
        calls: dict[tuple[Any, ...], list[int]] = {}
        stamps = zip(*(self._found.column(name).to_pylist() for name in names), strict=True)
        for row, call in enumerate(stamps):
            calls.setdefault(call, []).append(row)
        for call, places in calls.items():
            self._take_calls(str(call[0]), call[-1], self._found.take(pa.array(places)))

    def _take_calls(self, version: str, padded: int | None, found: pa.RecordBatch) -> None:
        """Compare the scores of predictions that a bundle made in calls of one padded shape."""
        scorer = self._scorer(version)
        if isinstance(scorer, str):
            self._note_all(found, "bundle_version", version, "a bundle of this root", scorer)
            return
        shape = padded if padded is not None and padded in range(1, MAX_ROWS + 1) else MAX_ROWS
        shape = padded_rows(shape)
        rows = rows_of_calls(found.column("call_row"), shape)
        by = scorer.stamps
        for call in rows:
            # What other rows of a call hold does not matter.
            is_mine = call >= 0
            whole = np.where(is_mine, call, call.max())
            score = self._score(scorer, found.take(pa.array(whole)))
            some = found.take(pa.array(call[is_mine]))
            right: dict[str, Any] = {
                "bundle_version": by.bundle,
                "transform_hash": by.transform,
                "spec_hash": by.features,
                "padded_rows": shape,
                **{name: getattr(by, name) for name in _CALL},
            }
            expected: dict[str, pa.Array] = {
                name: pa.array([value] * some.num_rows, some.column(name).type)
                for name, value in right.items()
            }
            expected["score"] = score.filter(pa.array(is_mine))
            expected["call_row"] = pa.array(np.flatnonzero(is_mine))
            self.scores += some.num_rows
            self._compare(some, _with_columns(some, expected), scorer)

    def _score(self, scorer: Scorer, rows: pa.RecordBatch) -> pa.Array:
        """Return the scores of predictions, null where the model refuses one."""
        return scorer.call(rows.select(self._inputs)).outputs.column("score")

    def _compare(
        self, found: pa.RecordBatch, expected: pa.RecordBatch, scorer: Scorer | None
    ) -> None:
        made, is_alike = {}, True
        if scorer is not None:
            made = {name: _most_frequent(found.column(name)) for name in _CALL}
            is_alike = all(made[name] == getattr(scorer.stamps, name) for name in _CALL)
            is_alike &= not pc.any(pc.equal(found.column("call_row"), UNKNOWN_ROW)).as_py()
        if not is_alike:
            self.elsewhere += found.num_rows
        for name in expected.schema.names:
            if name in self._elsewhere_checked:
                continue
            seen, right = found.column(name), expected.column(name)
            if seen.type != right.type:
                raise InputError(
                    f"predictions: column {name!r} is {seen.type}, this code writes {right.type}; "
                    "run `tidemill stream` again"
                )
            if name in made:
                right = pa.array([made[name]] * len(right), right.type)
            if name == "call_row":
                is_unknown = pc.equal(seen, UNKNOWN_ROW).fill_null(fill_value=False)
                right = pc.if_else(is_unknown, seen, right)
            wrong = differing(seen, right)
            if name == "score" and scorer is not None and not is_alike:
                far = _far(seen, right)
                self._note_near(found, right, wrong & ~far, made, scorer)
                wrong &= far
            what, _, view = name.partition("__")
            cause = _CAUSES.get(name, "the other predictions of its call say something else")
            if scorer is None and name in _SCORED:
                cause = "the stream had no model: its predictions have no score"
            if view:
                cause = "the stream's polls give another answer: the prediction names another one"
            for row in np.flatnonzero(wrong).tolist():
                self._findings.add(
                    Mismatch(
                        what, found.column("request_id")[row].as_py(), view, "" if view else name,
                        seen=shown(name, seen, row), expected=shown(name, right, row), cause=cause,
                    )
                )  # fmt: skip
        self._check_clocks(found)

    def _note_near(
        self,
        found: pa.RecordBatch,
        right: pa.Array,
        near: BoolArray,
        made: Mapping[str, Any],
        scorer: Scorer,
    ) -> None:
        """Count scores that another kind of call has made, and keep the first of them."""
        self.near += int(near.sum())
        here = {name: getattr(scorer.stamps, name) for name in _CALL}
        for row in np.flatnonzero(near)[: NEAREST - len(self.nearest)].tolist():
            self.nearest.append(
                Near(
                    found.column("request_id")[row].as_py(),
                    found.column("partition")[row].as_py(),
                    found.column("position")[row].as_py(),
                    shown("score", found.column("score"), row),
                    shown("score", right, row),
                    f"bundle {scorer.stamps.bundle} scored it with {_call(made)}, and this process "
                    f"scores with {_call(here)}",
                )
            )

    def _check_clocks(self, found: pa.RecordBatch) -> None:
        """Check that a prediction was made after its request was read."""
        sent, created = (found.column(name) for name in STAMPS)
        nulls = differing(sent, sent.fill_null(0)) | differing(created, created.fill_null(0))
        wrong = nulls | (hashing.bits(sent) > hashing.bits(created))
        for row in np.flatnonzero(wrong).tolist():
            self._findings.add(
                Mismatch(
                    "created_us", found.column("request_id")[row].as_py(), "", "created_us",
                    seen=shown("created_us", created, row),
                    expected=f"not before {shown('sent_us', sent, row)}",
                    cause="a prediction is made after its request was read",
                )
            )  # fmt: skip

    def _note_all(
        self, found: pa.RecordBatch, field: str, seen: str, expected: str, cause: str
    ) -> None:
        for id in found.column("request_id").to_pylist():
            self._findings.add(
                Mismatch("score", id, "", field, seen=seen, expected=expected, cause=cause)
            )

    def _scorer(self, version: str) -> Scorer | str:
        """Return the scorer of a bundle, or why there is none."""
        if version not in self._scorers:
            folder = self._root / BUNDLES / version
            try:
                if folder.name != version:  # a path would load something else
                    raise BundleError(f"{version!r} is no version of a bundle")
                self._scorers[version] = infer.scorer_of(folder, self._project)
            except (BundleError, FileNotFoundError) as error:
                self._scorers[version] = f"its score cannot be computed again: {error}"
        return self._scorers[version]


def _call(made: Mapping[str, Any]) -> str:
    """Return a kind of call as a text."""
    xla = " and XLA" if made["xla"] else ""
    return f"TensorFlow {made['tensorflow']} on {made['device']}{xla}"


def _with_columns(rows: pa.RecordBatch, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    names = rows.schema.names
    arrays = [columns.get(name, rows.column(name)) for name in names]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _most_frequent(column: pa.Array) -> Any:
    ((value, _),) = Counter(column.to_pylist()).most_common(1)
    return value


def _far(one: pa.Array, other: pa.Array) -> BoolArray:
    """Return where two columns of scores are further apart than devices make them."""
    first, second = (column.to_numpy(zero_copy_only=False) for column in (one, other))
    far: BoolArray = ~(np.abs(first - second) <= TOLERANCE)
    return far
