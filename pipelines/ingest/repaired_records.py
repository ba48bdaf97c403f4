"""Mended records: rejected records with a corrected payload, kept beside the source's files.

The promises:

* A mended record is stored as a payload in ``root/mended/<source>/<number>.parquet``, one file for
  each replay, never as a row. Every ingest parses it as the source's format says and applies the
  same transform and validation as to the source's files. So it survives a rebuild of the log, and
  changes of the schema or the transform apply to it.
* It replaces one record of the source's files (`record_id`), as long as they contain it: also when
  the schema, the transform or the bounds have changed since, so that it is no longer rejected.
* In the log, the rows of each replay are a partition after the partitions of the files. So later
  replays do not change the positions of earlier rows.
* A row that is already in the log is not added again.
* Where a request with a repeated id is rejected, a mended record needs an id of its own: it is
  rejected as long as a row of the files, or an earlier mended record, has its id.

A record of a table is never late; its own time gives its place. A record of a log with a time of
receipt arrives at the end of the log, with the last row of its partition. It is too late if its
time is further below the partition's highest accepted time than the stream allows, and too far
ahead by the time of receipt in its payload. The record is stored with the highest time and the last
arrival at the replay, so that every later ingest decides the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import ARROW_TYPES, EventStream, Request
from tidemill.features.kernel.dedupe import first_occurrences
from tidemill.features.kernel.prepare import identity_digests
from tidemill.features.rows import rejected
from tidemill.features.rows.local_times import Receipts
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.ingest.source_files import wanted_keys
from tidemill.pipelines.io.acceptance import judge_arrivals
from tidemill.pipelines.io.files import csv_lines, json_lines
from tidemill.pipelines.io.files.csv_lines import BYTE_ORDER_MARK
from tidemill.pipelines.io.files.judged_rows import judge
from tidemill.pipelines.io.files.readers import RawBatch, nulled
from tidemill.pipelines.io.request_ids import RequestIds
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run import paths
from tidemill.serving.files.read_files import reading

_SCHEMA: Final = pa.schema(
    [
        ("record", pa.string()),
        ("origin", pa.string()),
        ("payload", pa.binary()),
        ("format", pa.string()),
        ("columns", pa.binary()),
        ("highest_us", pa.int64()),
        ("received_us", pa.int64()),
        ("partition", pa.int64()),
        ("position", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Mended:
    """A mended record.

    Attributes:
        record: The rejected record that it replaces (`record_id`).
        origin: The line of the mended file, such as ``"orders.jsonl:3"``.
        payload: The mended bytes: a csv line without its newline, or a JSON object (also for
            Parquet).
        format: The source's format: ``csv``, ``jsonl`` or ``parquet``.
        columns: The columns of the record's file, as they are read.
        highest_us: The partition's highest accepted time at the replay; `TIME_MIN` for a table.
        received_us: When the partition's last row arrived, at the replay; `TIME_MIN` for a table.
        partition: The partition (file) of the record that it replaces; None in a replay of a
            version that did not write it.
        position: The number of that record in the file, likewise.
    """

    record: str
    origin: str
    payload: bytes
    format: str
    columns: pa.Schema
    highest_us: int = TIME_MIN
    received_us: int = TIME_MIN
    partition: int | None = None
    position: int | None = None


def record_id(record: Mapping[str, Any]) -> str:
    """Return the id of a rejected record (a row of `rows.rejected.SCHEMA`): 16 hex digits.

    The id depends only on the record's position in its source and on its bytes.
    """
    place = [record["stream"], record["partition"], record["position"], record["payload"].hex()]
    return hashlib.sha256(json.dumps(place).encode("ascii")).hexdigest()[:16]


def mended_files(root: Path, source: str) -> list[Path]:
    """Return the files with a source's mended records, in the order of their replays."""
    return sorted((root / paths.MENDED / source).glob("*.parquet"))


def read_mended(root: Path, source: str) -> list[list[Mended]]:
    """Read a source's mended records by replay; each record only in its newest replay."""
    replays = []
    for path in mended_files(root, source):
        with reading(path, "remove it, and replay the mended records again"):
            rows = pq.read_table(path, schema=_SCHEMA).to_pylist()
            replays.append(
                [
                    Mended(**row | {"columns": pa.ipc.read_schema(pa.py_buffer(row["columns"]))})
                    for row in rows
                ]
            )
    newest = {one.record: number for number, replay in enumerate(replays) for one in replay}
    return [
        [one for one in replay if newest[one.record] == number]
        for number, replay in enumerate(replays)
    ]


def write_mended(root: Path, source: str, mended: Sequence[Mended]) -> None:
    """Add the mended records of one replay."""
    folder = root / paths.MENDED / source
    number = len(list(folder.glob("*.parquet")))
    rows = [vars(one) | {"columns": one.columns.serialize().to_pybytes()} for one in mended]
    write_rows(folder, pa.Table.from_pylist(rows, schema=_SCHEMA), f"{number:05d}")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of judging mended records; the transform dropped those in neither attribute.

    Attributes:
        rows: The accepted rows, in the declared columns and types, ``(accepted,)``.
        accepted: int64, ``(accepted,)``: the indices of their records, ascending.
        refused: Record index to stage, reason and detail.
        repeated: How many of the accepted rows are requests whose id an earlier request has.
    """

    rows: pa.RecordBatch
    accepted: Int64Array
    refused: dict[int, tuple[str, str, str]]
    repeated: int = 0


def judge_mended(
    definition: EventStream | Request,
    source: Source,
    mended: Sequence[Mended],
    ids: RequestIds | None = None,
    partition: int = 0,
) -> Outcome:
    """Read, transform, validate and accept mended records, each on its own.

    Args:
        definition: The declaration that the rows must match.
        source: The records' source.
        mended: The records.
        ids: The ids of the requests before them; None of an event stream.
        partition: The number of their partition among ``ids``.

    Raises:
        InputError: The transform failed.
    """
    refused: dict[int, tuple[str, str, str]] = {}
    raw: dict[pa.Schema, list[tuple[int, pa.RecordBatch]]] = {}
    for index, one in enumerate(mended):
        try:
            row = _raw_row(one, source, list(definition.schema))
        except _Unreadable as unreadable:
            refused[index] = Stage.READ, unreadable.args[0], unreadable.args[1]
        else:
            raw.setdefault(row.schema, []).append((index, row))
    empty = pa.schema([(name, ARROW_TYPES[d]) for name, d in definition.schema.items()])
    rows = [pa.RecordBatch.from_pylist([], schema=empty)]
    accepted: list[int] = []
    # Mended records come after the log: their order says nothing about their times of receipt.
    receipts = None if source.received is None else Receipts(source.received, lowest_us=None)
    for numbered in raw.values():
        batch = pa.concat_batches([row for _, row in numbered])
        indices = np.array([index for index, _ in numbered], np.int64)
        judged = judge(
            definition,
            _as_read(batch, indices, mended),
            source.zone,
            source.transform,
            ambiguous=source.ambiguous,
            receipts=receipts,
        )
        refused |= {
            row["position"]: (row["stage"], row["reason"], row["detail"])
            for row in judged.rejected.to_pylist()
        }
        accepted += judged.positions.tolist()
        rows.append(judged.batch)
    order = np.argsort(np.array(accepted, np.int64))
    table = pa.concat_batches(rows).take(pa.array(order))
    places = np.array(accepted, np.int64)[order]
    if source.received is not None:
        for row, index in enumerate(places.tolist()):
            refusals, _ = judge_arrivals(
                definition, table.slice(row, 1), source.received, mended[index].highest_us
            )
            if refusals:
                refused[index] = (Stage.ACCEPT, *refusals[0])
        good = np.array([index not in refused for index in places.tolist()], np.bool_)
        table, places = table.take(pa.array(np.flatnonzero(good))), places[good]
    repeated = {} if ids is None else ids.repeated(partition, places, table)
    if ids is None or not ids.rejects:
        return Outcome(table, places, refused, len(repeated))
    refused |= {int(places[row]): (Stage.ACCEPT, *why) for row, why in repeated.items()}
    good = np.array([row not in repeated for row in range(len(places))], np.bool_)
    return Outcome(table.take(pa.array(np.flatnonzero(good))), places[good], refused)


def _as_read(batch: pa.RecordBatch, indices: Int64Array, mended: Sequence[Mended]) -> RawBatch:
    return RawBatch(
        batch,
        0,
        indices,
        lambda rows: [mended[index].origin for index in indices[rows].tolist()],
        lambda rows: [mended[index].payload for index in indices[rows].tolist()],
        rejected.none(),
    )


class _Unreadable(Exception):
    """A payload that is not a valid row: the reason and the detail."""


def _raw_row(one: Mended, source: Source, declared: Sequence[str]) -> pa.RecordBatch:
    """Parse a payload as the source's reader does, with the columns of its file.

    The readers skip a byte order mark at the start of a file. One is put there, so that they take
    another one, in the header or the payload, for the character that it was in its file.
    """
    if one.format == "csv":
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(one.columns.names)
        file = io.BytesIO(BYTE_ORDER_MARK + header.getvalue().encode() + one.payload)
        nulls = ("",) if source.nulls is None else source.nulls
        blocks = list(csv_lines.read_blocks(file, one.origin, nulls=nulls))
        return _only(blocks, Reason.BROKEN_CSV_LINE, "csv rows, expected one").batch
    wanted = wanted_keys(source, declared) if one.format == "jsonl" else None
    asked = json_lines.Keys(wanted, one.columns.names)
    file = io.BytesIO(BYTE_ORDER_MARK + one.payload)
    lines = [found for (found,) in json_lines.read_lines(file, [asked])]
    batch = _only(lines, Reason.BROKEN_JSON, "lines, expected one JSON object in one line").batch
    if one.format == "parquet":
        batch = _typed(batch, one.columns, required=source.transform is not None)
    return nulled(batch, source.nulls or ())


def _only(
    found: Sequence[csv_lines.Block] | Sequence[json_lines.Lines], reason: Reason, expected: str
) -> csv_lines.Block | json_lines.Lines:
    rows = sum(len(part.lines) for part in found)
    if rows != 1:
        raise _Unreadable(reason, f"found {rows} {expected}")
    if found[0].faults:
        raise _Unreadable(*found[0].faults[0])
    return found[0]


def _typed(batch: pa.RecordBatch, schema: pa.Schema, required: bool) -> pa.RecordBatch:
    """Convert the texts of one row to the types of its Parquet file, where that is possible.

    Validation can read the remaining texts. A transform expects the file's types, so if the
    source has a transform, every text must be converted.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for field_ in schema:
        text = columns[field_.name]
        try:
            if pa.types.is_nested(field_.type):
                columns[field_.name] = pa.array(
                    [None if text[0].as_py() is None else json.loads(text[0].as_py())], field_.type
                )
            else:
                columns[field_.name] = text.cast(field_.type)
        except (pa.ArrowException, TypeError, ValueError):
            if required:
                detail = (
                    f"column {field_.name!r}: found {text[0].as_py()!r}, expected {field_.type} "
                    "as in its file"
                )
                raise _Unreadable(Reason.WRONG_TYPE, detail) from None
    return pa.RecordBatch.from_pydict(columns)


def fresh_rows(
    definition: EventStream | Request, rows: pa.RecordBatch, others: Iterable[pa.RecordBatch]
) -> Int64Array:
    """Return the indices (int64, ascending) of rows that are no other row and no earlier row.

    Args:
        definition: Says by which columns two rows are one.
        rows: ``(rows,)``.
        others: Other rows, batch by batch, in the same columns.
    """
    mine = identity_digests(definition, rows)
    known = [np.zeros((0, 2), np.uint64)]
    if len(mine):
        for batch in others:
            digests = identity_digests(definition, batch)
            known.append(digests[np.isin(digests[:, 0], mine[:, 0])])
    before = sum(map(len, known))
    first = first_occurrences(np.concatenate([*known, mine]))
    return first[first >= before] - before


def restated(
    records: Sequence[Mapping[str, Any]],
    mended: Sequence[Mended],
    refused: Mapping[int, tuple[str, str, str]],
) -> list[dict[str, Any]]:
    """Return the rejected records whose mended payload is refused, with the new reason.

    They keep their first payload; the detail names the line of the mended file.

    Args:
        records: Rows of `features.rows.rejected.SCHEMA`.
        mended: The mended record of each.
        refused: As in `Outcome`.
    """
    return [
        {
            **records[index],
            "stage": str(stage),
            "reason": str(reason),
            "detail": f"as mended in {mended[index].origin}: {detail}",
        }
        for index, (stage, reason, detail) in sorted(refused.items())
    ]


@dataclass(frozen=True, eq=False)
class Settled:
    """The result of an ingest for a source's mended records.

    Attributes:
        parts: Partitions for the log: the declared columns, in order of arrival, and when each
            row arrived (int64 microseconds).
        rejected: The records that are refused now (`features.rows.rejected.SCHEMA`).
        mended: How many rejected records the mended ones replace.
        repeated: How many of their rows are requests whose id an earlier request has.
    """

    parts: list[tuple[pa.Table, Int64Array]]
    rejected: pa.RecordBatch
    mended: int
    repeated: int = 0


@dataclass
class Mending:
    """Replaces a source's rejected records by its mended ones, during an ingest.

    Attributes:
        root: The run's folder.
        source: The source's name.
    """

    root: Path
    source: str
    _records: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._replays = read_mended(self.root, self.source)
        mended = [one for replay in self._replays for one in replay]
        self._known = {one.record for one in mended}
        self._is_placed = all(one.position is not None for one in mended)
        self._positions: dict[int | None, list[int | None]] = {}
        for one in mended:
            self._positions.setdefault(one.partition, []).append(one.position)

    def replaces(self, raw: RawBatch) -> BoolArray:
        """Tell for which raw rows a mended record stands in: bool, ``(rows,)``."""
        found = np.zeros(raw.batch.num_rows, np.bool_)
        candidates = np.arange(len(found))
        if self._is_placed:
            mine = np.array(self._positions.get(raw.partition, []), np.int64)
            candidates = np.flatnonzero(np.isin(raw.positions, mine))
        if not len(candidates):
            return found
        for row, payload in zip(candidates.tolist(), raw.payloads(candidates), strict=True):
            record = {
                "stream": self.source,
                "partition": raw.partition,
                "position": int(raw.positions[row]),
                "payload": payload,
            }
            found[row] = record_id(record) in self._known
        return found

    def take(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch of rejected records without those that are mended."""
        if not self._known or batch.num_rows == 0:
            return batch
        left = []
        for row, record in enumerate(batch.to_pylist()):
            if (name := record_id(record)) in self._known:
                self._records[name] = record
            else:
                left.append(row)
        return batch.take(pa.array(left, pa.int64()))

    def settle(
        self,
        definition: EventStream | Request,
        source: Source,
        rows_of_files: Callable[[], Iterable[pa.RecordBatch]],
        files: int,
        ids: RequestIds | None = None,
    ) -> Settled:
        """Judge the mended records, after all of the source's files were read.

        Args:
            definition: As for `judge_mended`.
            source: As for `judge_mended`.
            rows_of_files: Reads the rows of the files, in any order.
            files: The number of the first partition of mended records.
            ids: The ids of the requests of the files; None of an event stream.
        """
        parts: list[tuple[pa.Table, Int64Array]] = []
        wrong: list[dict[str, Any]] = []
        if not self._records:
            return Settled(parts, rejected.none(), 0)
        earlier: list[pa.RecordBatch] = []
        repeated = 0
        for number, replay in enumerate(self._replays):
            used = [one for one in replay if one.record in self._records]
            outcome = judge_mended(definition, source, used, ids, files + number)
            repeated += outcome.repeated
            records = [self._records[one.record] for one in used]
            wrong += restated(records, used, outcome.refused)
            others = itertools.chain(rows_of_files(), earlier)
            fresh = fresh_rows(definition, outcome.rows, others)
            if len(fresh):
                earlier.append(outcome.rows.take(pa.array(fresh)))
                rows = pa.Table.from_batches(earlier[-1:])
                ends = [used[index].received_us for index in outcome.accepted[fresh].tolist()]
                parts.append(_in_order(definition, source, rows, np.array(ends, np.int64)))
        batch = pa.RecordBatch.from_pylist(wrong, schema=rejected.SCHEMA)
        return Settled(parts, batch, len(self._records) - len(wrong), repeated)


def _in_order(
    definition: EventStream | Request, source: Source, rows: pa.Table, ends_us: Int64Array
) -> tuple[pa.Table, Int64Array]:
    """Sort rows by arrival, time and id."""
    at = rows.column(source.received or definition.time_column).cast(pa.int64()).to_numpy()
    received = np.maximum(at, ends_us)
    keys = rows.select([definition.time_column, definition.id_column])
    order = pc.sort_indices(
        keys.append_column("", pa.array(received)),
        sort_keys=[(name, "ascending") for name in ("", *keys.column_names)],
    )
    return rows.take(order), received[order.to_numpy()]
