"""Compare a recorded run with the current definitions: what a change of code changes.

What is promised here: the root folder of a run is only read. Each value that a prediction used is
compared with what the current definitions give for the same request, at the same instant, from the
events that had been seen when it was answered. So a difference comes from the definitions or the
code, never from a late event.

This does not prove the run: it trusts the log that the run wrote. `tidemill verify` compares a run
with its source files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import (
    ARROW_TYPES,
    TIMESTAMP,
    EventStream,
    FeatureView,
    Project,
    Request,
)
from tidemill.features.errors import InputError, nearest
from tidemill.features.kernel import hashing
from tidemill.features.rows.validation import validate
from tidemill.pipelines.history.point_in_time import columns_of, values_at
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, Log, one_batch
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.release_log import place_of, read_release_lines
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.pipelines.stream.sequence import arrivals
from tidemill.pipelines.verify.counterfactuals import Case, values_of_cases
from tidemill.pipelines.verify.instants import scalar_text
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.source_history import (
    EventsByKey,
    PositionVector,
    Seen,
    SourceHistory,
)
from tidemill.serving.generations.current import read_current, streams_of
from tidemill.testing.rows import REJECTED_ROWS, CheckedRows

DIFFERENCES: Final = pa.schema(
    [
        ("request_id", pa.string()),
        ("view", pa.string()),
        ("feature", pa.string()),
        ("as_of", ARROW_TYPES[TIMESTAMP]),
        ("served", pa.string()),
        ("now", pa.string()),
    ]
)
"""The columns of differences.

* view: empty for an input of the request. feature: the column of the model input.
* served, now: both values as Python writes them (``3``, ``2.5``, ``True``, ``'word'``, ``None``);
  a timestamp in the form of ISO 8601.
"""

_IDS: Final = ("request_id", "request_time", "partition", "position")
_STAMPS: Final = ("as_of", "release", "shard")
_SCORE: Final = "score"

_Releases = Mapping[tuple[str, int, int], PositionVector]


@dataclass(frozen=True, eq=False)
class RunComparison:
    """A recorded run compared with the current definitions.

    Attributes:
        differences: A table of `DIFFERENCES`, by request in the order of the log, then by column.
        only_served: Model inputs that the run served and the definitions no longer have.
        only_now: Model inputs that the definitions have and the run did not serve.
        requests: How many requests were compared.
        values: How many values were compared.
        served: Of these requests, ``request_id``, ``request_time`` and every model input as it was
            served.
        now: The same rows with every model input that the definitions give, those of `only_now`
            too. A view that is new is computed from the whole log as of the request's time.
        rejected: Rows of the log that the current definitions reject, which are left out:
            ``source``, ``row`` (its place in the log), ``reason``, ``detail``.
    """

    differences: pa.Table
    only_served: tuple[str, ...]
    only_now: tuple[str, ...]
    requests: int
    values: int
    served: pa.Table
    now: pa.Table
    rejected: pa.Table


def compare_with_run(root: Path | str, project: Project) -> RunComparison:
    """Compare what a recorded run served with what a project's definitions give.

    Args:
        root: The run's folder: what ``root:`` in the configuration names, after `tidemill stream`.
            The predictions and releases of its current stream are read, or of the newest one that
            has answered, and the log of that stream's generation; nothing is written.
        project: The current definitions.

    Raises:
        InputError: The run has no predictions, no releases or no log of a stream; or its log lacks
            a column that the definitions declare.
        StateError: There is no run below the root, or another version wrote it.
    """
    root = Path(root)
    current = read_current(root)
    answered = (one for one in streams_of(root) if predictions_of(one.stream_folder).has_any())
    run = next(answered, current)
    log, stream = Log(run.build_folder), run.stream_folder
    predictions = _predictions(stream)
    sources, rejected = _sources(log, project)
    served, requests = _beside(log, predictions, sources[project.request.name])
    inputs, views = _recorded_columns(served)
    now: dict[str, pa.Array] = {
        name: expression.evaluate(requests) for name, expression in project.request.inputs.items()
    }
    asked_us = hashing.bits(requests.column(project.request.request_time))
    arrived_us = arrivals(asked_us, hashing.bits(requests.column(RECEIVED)))
    as_of: dict[str, Int64Array] = {}
    view_of = {column.name: column.view for column in project.columns}
    releases = _releases(stream)
    for view in project.views:
        as_of[view.name] = (
            hashing.bits(served.column(f"as_of__{view.name}"))
            if view.name in views
            else hashing.bits(requests.column(project.request.request_time))
        )
        source = sources[view.stream.name]
        keys = requests.column(project.request.key_column(view.entity))
        # None for a view whose events the run took from another stream: then no release states
        # positions of this one.
        seen = None
        if view.name in views:
            recorded = _recorded_streams(root, served).get(view.name, view.stream.name)
            if recorded == view.stream.name:
                asked = sources[project.request.name]
                seen = _seen(view, served, releases, source, asked, arrived_us, stream)
        now |= _values_now(EventsByKey(view, source), keys, as_of[view.name], seen)
    both = [name for name in now if name in inputs]
    differences = _differences(
        served,
        {name: now[name] for name in both},
        {name: view_of.get(name, "") for name in both},
        {"": asked_us, **as_of},
    )
    ids = {name: served.column(name) for name in _IDS[:2]}
    return RunComparison(
        differences=differences,
        only_served=tuple(name for name in inputs if name not in now),
        only_now=tuple(name for name in now if name not in inputs),
        requests=served.num_rows,
        values=served.num_rows * len(both),
        served=pa.table({**ids, **{name: served.column(name) for name in inputs}}),
        now=pa.table({**ids, **now}),
        rejected=rejected,
    )


def _predictions(stream: Path) -> pa.RecordBatch:
    found = predictions_of(stream).read()
    if found is None:
        raise InputError(
            f"there are no predictions in {stream / paths.PREDICTIONS}; run `tidemill stream` "
            "with this root, or name the root of a run that has streamed"
        )
    return one_batch(found)


def _recorded_columns(predictions: pa.RecordBatch) -> tuple[list[str], list[str]]:
    """Return the model inputs that predictions hold, and the views that answered them."""
    names = predictions.schema.names
    first = len(_IDS)
    prefix = f"{_STAMPS[0]}__"
    views = []
    for name in names[first:]:
        if not name.startswith(prefix):
            break
        views.append(name.removeprefix(prefix))
    first += len(_STAMPS) * len(views)
    return names[first : names.index(_SCORE, first)], views


def _sources(log: Log, project: Project) -> tuple[dict[str, SourceHistory], pa.Table]:
    sources, rejected = {}, [REJECTED_ROWS.empty_table()]
    streams = dict.fromkeys(view.stream for view in project.views)
    definitions: list[EventStream | Request] = [*streams, project.request]
    for definition in definitions:
        sources[definition.name], refused = _source(log, definition)
        rejected.append(refused)
    return sources, pa.concat_tables(rejected)


def _source(log: Log, definition: EventStream | Request) -> tuple[SourceHistory, pa.Table]:
    """Read the log of a source: the rows that the current definitions accept, and the others."""
    logged = log.read(definition.name)
    for name in definition.schema:
        if name not in logged.column_names and name not in definition.optional:
            raise InputError(
                f"the log of {definition.name!r} in {log.root} has no column {name!r} "
                f"({nearest(name, logged.column_names)}): the run was made before it was declared; "
                "compare with a run that has it"
            )
    known = [name for name in definition.schema if name in logged.column_names]
    rows = one_batch(logged.select(known))
    found = validate(definition, rows)
    places = one_batch(logged.select([POSITION, RECEIVED, PARTITION])).take(pa.array(found.kept))
    table = pa.table(
        [*found.batch.columns, *places.columns],
        names=[*found.batch.schema.names, *places.schema.names],
    )
    counts = Counts(read=len(logged), kept=len(table), rejected=len(found.reasons))
    source = SourceHistory(definition, table, log.partitions(definition.name), counts)
    return source, CheckedRows(definition, rows, found).rejected


def _beside(
    log: Log, predictions: pa.RecordBatch, requests: SourceHistory
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Put each prediction beside its request, in the order of the log.

    A prediction whose request the current definitions reject is left out.

    Raises:
        InputError: The log does not hold the request of a prediction.
    """
    places = places_of(predictions, "partition", "position")
    ids = predictions.column("request_id")
    logged = log.read(requests.definition.name, columns=[POSITION])
    accepted, row = _found(places_of(requests.rows, PARTITION, POSITION), places)
    asked = one_batch(requests.rows.select([requests.definition.id_column])).column(0)
    same = np.zeros(len(places), np.bool_)
    if accepted.any():
        theirs = asked.cast(pa.string()).take(pa.array(row[accepted]))
        same[accepted] = pc.equal(ids.filter(pa.array(accepted)), theirs).to_numpy(
            zero_copy_only=False
        )
    strange = np.flatnonzero(~_found(places_of(logged, PARTITION, POSITION), places)[0])
    strange = np.concatenate([strange, np.flatnonzero(accepted & ~same)])
    if len(strange):
        raise InputError(
            f"the log of {requests.definition.name!r} in {log.root} does not hold the request of "
            f"prediction {ids[int(strange[0])].as_py()!r} at its place, nor those of "
            f"{len(strange) - 1} others: the log was written again since, or the definitions take "
            "another column for the request's id"
        )
    kept = np.flatnonzero(accepted)
    kept = kept[np.argsort(places[kept], kind="stable")]
    beside = one_batch(requests.rows.take(pa.array(row[kept])))
    return predictions.take(pa.array(kept)), beside


def _found(known: Int64Array, wanted: Int64Array) -> tuple[npt.NDArray[np.bool_], Int64Array]:
    """Tell which of the wanted places are known, and the row of each of these."""
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], wanted)
    is_known = place < len(order)
    row = np.zeros(len(wanted), np.int64)
    row[is_known] = order[place[is_known]]
    is_known[is_known] = known[row[is_known]] == wanted[is_known]
    return is_known, row


def _releases(stream: Path) -> _Releases:
    """Return the positions of each release, by view, shard and number."""

    def take(entry: Any) -> tuple[tuple[str, int, int], PositionVector]:
        return place_of(entry), tuple(map(int, entry["positions"]))

    return dict(read_release_lines(stream, take))


def _seen(
    view: FeatureView,
    served: pa.RecordBatch,
    releases: _Releases,
    events: SourceHistory,
    requests: SourceHistory,
    arrived_us: Int64Array,
    stream: Path,
) -> list[Seen]:
    """Return for each prediction which events it can have used."""
    begun = StreamRun.read(stream)
    is_eager = begun is not None and begun.mode == Mode.EAGER.value
    first = () if begun is None else tuple(begun.positions.get(view.stream.name, ()))
    shards, numbers = (
        hashing.bits(served.column(f"{prefix}__{view.name}")).tolist()
        for prefix in ("shard", "release")
    )
    out = []
    for row, (shard, number) in enumerate(zip(shards, numbers, strict=True)):
        positions = releases.get((view.name, shard, number))
        if positions is None:
            raise InputError(
                f"request {served.column('request_id')[row].as_py()!r}: "
                f"{stream / paths.RELEASES} has no release {number} of view {view.name!r}, shard "
                f"{shard}, which answered it; nothing says what it had seen"
            )
        if len(positions) != events.partitions + requests.partitions:
            raise InputError(
                f"release {number} of view {view.name!r}, shard {shard}, knows {len(positions)} "
                f"partitions of events and requests, the log has {events.partitions} of "
                f"{view.stream.name!r} and {requests.partitions} of {requests.definition.name!r}; "
                "the log was written again since: compare with a complete run"
            )
        before = None
        if is_eager:
            earlier = releases.get((view.name, shard, number - 1))
            before = first if earlier is None else earlier[: events.partitions]
        out.append(Seen(positions[: events.partitions], before, int(arrived_us[row])))
    return out


def _recorded_streams(root: Path, served: pa.RecordBatch) -> dict[str, str]:
    """Return the stream of each view, as the bundle that scored the predictions has it.

    Views that no bundle below the root names are left out; so are all of a run without a model.
    """
    streams: dict[str, str] = {}
    for version in pc.unique(served.column("bundle_version").drop_null()).to_pylist():
        path = root / paths.BUNDLES / version / "spec.json"
        if path.is_file():
            spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            streams |= {view["view"]: view["stream"]["stream"] for view in spec["views"]}
    return streams


def _values_now(
    events: EventsByKey, keys: pa.Array, as_of_us: Int64Array, seen: list[Seen] | None
) -> dict[str, pa.Array]:
    """Compute a view's columns; where a release had not seen all events, from those it had."""
    view = events.view
    values, nulls = values_at(view, events.rows, keys, as_of_us)
    rows: list[int] = []
    cases: list[Case] = []
    if seen is not None:
        plain = zip(keys.to_pylist(), as_of_us.tolist(), seen, strict=True)
        for row, (key, time_us, by) in enumerate(plain):
            window = events.window(key, time_us)
            window = window[events.times[window] < time_us]
            known = events.seen(window, by)
            if len(known) < len(window):
                rows.append(row)
                cases.append(Case(known, time_us))
    if cases:
        values, nulls = values.copy(), nulls.copy()
        values[rows], nulls[rows] = values_of_cases(events, cases)
    return columns_of(view, values, nulls)


def _differences(
    served: pa.RecordBatch,
    now: Mapping[str, pa.Array],
    views: Mapping[str, str],
    as_of_us: Mapping[str, Int64Array],
) -> pa.Table:
    rows: list[tuple[int, int, str]] = []
    for place, (name, column) in enumerate(now.items()):
        different = _differ(served.column(name), column)
        rows += [(row, place, name) for row in np.flatnonzero(different).tolist()]
    rows.sort()
    ids = served.column("request_id")
    return pa.table(
        [
            pa.array([ids[row].as_py() for row, _, _ in rows], pa.string()),
            pa.array([views[name] for _, _, name in rows], pa.string()),
            pa.array([name for _, _, name in rows], pa.string()),
            pa.array([int(as_of_us[views[name]][row]) for row, _, name in rows], pa.int64()).cast(
                ARROW_TYPES[TIMESTAMP]
            ),
            pa.array([_shown(served.column(name)[row]) for row, _, name in rows], pa.string()),
            pa.array([_shown(now[name][row]) for row, _, name in rows], pa.string()),
        ],
        schema=DIFFERENCES,
    )


def _shown(value: pa.Scalar) -> str:
    timestamp = pa.types.is_timestamp(value.type) and value.is_valid
    return scalar_text("", value) if timestamp else repr(value.as_py())


def _differ(one: pa.Array, other: pa.Array) -> npt.NDArray[np.bool_]:
    """Tell where two columns differ: in a value, in a null, or, where there is a value, in type."""
    one_valid, other_valid = hashing.validity(one), hashing.validity(other)
    different: npt.NDArray[np.bool_] = one_valid != other_valid
    both = one_valid & other_valid
    if one.type != other.type:
        different |= both
    else:
        equal = pc.fill_null(pc.equal(one, other), False).to_numpy(zero_copy_only=False)
        different |= both & ~equal
    return different
