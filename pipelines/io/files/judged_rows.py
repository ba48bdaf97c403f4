"""Raw rows judged: each row is kept, dropped, or rejected with a reason.

A row is dropped by its source's transform, or because it is a forgotten row of an archive.

`Judge` applies the source's transform to raw batches and validates the result. If the source
is a log with a time of receipt, it then rejects, in order of arrival, the rows that come too late
or too far ahead. Of requests with one id it keeps the first, unless they are declared otherwise.
Always ``read = kept + dropped + rejected``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import EventStream, Request
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.features.rows.local_times import Receipts
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.features.rows.validation import validate
from tidemill.pipelines.io.acceptance import Gate, Refusals
from tidemill.pipelines.io.files.readers import RawBatch, Reader
from tidemill.pipelines.io.log_rows import PARTITION, POSITION, RECEIVED, forgotten_rows
from tidemill.pipelines.io.request_ids import RequestIds

REJECT_COLUMN: Final = "__reject__"
"""A transform's string column: why it rejects a row; null for other rows."""
DROP_COLUMN: Final = "__drop__"
"""A transform's bool column: true for a row that is not an event of this stream."""

_PLACES: Final = (PARTITION, POSITION, RECEIVED)
"""Columns that the files of an archive have beside the declared ones."""

Transform = Callable[[pa.RecordBatch], pa.RecordBatch]

Replaced = Callable[[RawBatch], BoolArray]
"""Tells for which raw rows another record stands in: bool, ``(rows,)``."""


@dataclass(frozen=True)
class Counts:
    """Numbers of rows: ``read = kept + dropped + rejected``.

    Attributes:
        read: Rows of the files.
        kept: Accepted rows.
        dropped: Rows that the source's transform took out, and forgotten rows of an archive.
        rejected: Rejected records.
        resolved: Kept rows with a local time that occurred twice: the source's rule chose the
            instant.
        repeated: Kept requests whose id an earlier request has.
    """

    read: int = 0
    kept: int = 0
    dropped: int = 0
    rejected: int = 0
    resolved: int = 0
    repeated: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.read + other.read,
            self.kept + other.kept,
            self.dropped + other.dropped,
            self.rejected + other.rejected,
            self.resolved + other.resolved,
            self.repeated + other.repeated,
        )


@dataclass(frozen=True, eq=False)
class StreamBatch:
    """Rows of a stream, judged.

    Attributes:
        batch: The accepted rows, ``(rows,)``.
        partition: The partition (file) of the rows.
        positions: int64, ``(rows,)``: the accepted rows' numbers in the file, ascending.
        rejected: The rejected rows (`features.rows.rejected.SCHEMA`), by position.
        counts: How many rows were kept, dropped and rejected.
    """

    batch: pa.RecordBatch
    partition: int
    positions: Int64Array
    rejected: pa.RecordBatch
    counts: Counts


class Judge:
    """Judges the raw rows of a source, in reading order.

    Args:
        definition: The declaration that the rows must match.
        files: The source's files (`pipelines.io.files.input_files`); the i-th is partition i.
        zone: The IANA zone of times without an offset; None if the source declares none.
        ambiguous: The rule for local times that occurred twice (`rows.local_times.RULES`); None
            rejects their rows. `rows.local_times.INFER` needs ``received``.
        transform: Turns a raw batch into one with the same rows, in order, and the declared
            columns. It may add the columns `REJECT_COLUMN` and `DROP_COLUMN`. A row that both mark
            is dropped.
        received: The timestamp column with the time of receipt: the rows of each file are in order
            of arrival, and rows that come too late or too far ahead are rejected. None for history
            read as a table: it has no order of arrival, so no row is late.
        replaced: Tells which rows are rejected because a mended record stands in for them.
        ids: The ids of the requests (`request_ids`), for who goes on with them; None to make them.
        clock_us: The clock of a live reader, after which no row is received; None for files.
    """

    def __init__(
        self,
        definition: EventStream | Request,
        files: Sequence[Path],
        *,
        zone: str | None = None,
        ambiguous: str | None = None,
        transform: Transform | None = None,
        received: str | None = None,
        replaced: Replaced | None = None,
        ids: RequestIds | None = None,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        if ids is None and isinstance(definition, Request):
            ids = request_ids(definition, files)
        self._definition, self._zone, self._transform = definition, zone, transform
        self._ambiguous, self._replaced, self._ids = ambiguous, replaced, ids
        self._received, self._clock_us = received, clock_us
        self._gate = None if received is None else Gate(definition, received, clock_us)
        self._receipts: dict[int, Receipts] = {}

    @property
    def reader(self) -> Reader:
        """What to read: a transform may read any column of the file."""
        columns = list(self._definition.schema) if self._transform is None else None
        return Reader(self._definition.name, columns)

    def highest_us(self, partition: int) -> int:
        """Return the highest accepted time of a partition, of a source with a time of receipt."""
        return TIME_MIN if self._gate is None else self._gate.highest_us(partition)

    def restore(self, partition: int, highest_us: int) -> None:
        """Go on with a partition whose highest accepted time is known."""
        if self._gate is not None:
            self._gate.restore(partition, highest_us)

    def alone(self) -> Judge:
        """Return a judge of the same source that knows the highest times.

        It finds ids that occur twice among its own rows, not those of earlier requests (`known`).
        """
        other = Judge(
            self._definition,
            [],
            zone=self._zone,
            ambiguous=self._ambiguous,
            transform=self._transform,
            received=self._received,
            clock_us=self._clock_us,
        )
        if self._gate is not None:
            other._gate = self._gate.copy()
        return other

    def known(self, rows: pa.RecordBatch) -> Refusals:
        """Return accepted rows that are refused because an earlier request has their id."""
        return self._ids.known(rows) if self._ids is not None and self._ids.rejects else {}

    def take(self, partition: int, positions: Int64Array, rows: pa.RecordBatch) -> None:
        """Go on as if this judge had accepted rows that another one has (`alone`)."""
        times_us = hashing.bits(rows.column(self._definition.time_column))
        self.restore(
            partition, max(self.highest_us(partition), int(times_us.max(initial=TIME_MIN)))
        )
        if self._ids is not None:
            self._ids.repeated(partition, positions, rows)
            self._forget()

    def judge(self, raw: RawBatch) -> StreamBatch:
        """Transform, validate and accept the next rows.

        Raises:
            InputError: The transform failed.
        """
        order = None
        if self._received is not None:
            order = self._receipts.setdefault(raw.partition, Receipts(self._received))
        judged = judge(
            self._definition,
            raw,
            self._zone,
            self._transform,
            self._gate,
            ambiguous=self._ambiguous,
            receipts=order,
            replaced=self._replaced,
            ids=self._ids,
        )
        self._forget()
        return judged

    def _forget(self) -> None:
        """Forget ids that no row is compared with any more."""
        if self._ids is not None and self._gate is not None:
            self._ids.forget_before(self._gate.forgotten_us)


def request_ids(request: Request, files: Sequence[Path]) -> RequestIds:
    """Return the ids of a source's requests, before the first is read.

    The i-th file is partition i. Partitions after those of the files are of mended records.
    """

    def where(partition: int, position: int) -> str:
        if partition >= len(files):
            return "a mended record"
        return f"row {position + 1:,} of {files[partition].name}"

    return RequestIds(request, where)


def judge(
    definition: EventStream | Request,
    raw: RawBatch,
    zone: str | None,
    transform: Transform | None,
    gate: Gate | None = None,
    *,
    ambiguous: str | None = None,
    receipts: Receipts | None = None,
    replaced: Replaced | None = None,
    ids: RequestIds | None = None,
) -> StreamBatch:
    """Transform, validate and accept raw rows.

    Args:
        definition: As for `Judge`.
        raw: The rows.
        zone: As for `Judge`.
        transform: As for `Judge`.
        gate: Rejects rows that come too late or too far ahead; None if no row can.
        ambiguous: As for `Judge`.
        receipts: The time-of-receipt column of the rows' partition; None if there is none.
        replaced: As for `Judge`.
        ids: The ids of the requests before these; None of an event stream.

    Raises:
        InputError: The transform failed.
    """
    batch, rows, dropped = raw.batch, np.arange(raw.batch.num_rows), 0
    refused = [raw.rejected]
    stays = np.ones(len(rows), np.bool_) if replaced is None else ~replaced(raw)
    forgotten = _forgotten(definition, raw.batch)
    if not stays.all():
        gone = np.flatnonzero(~stays)
        reasons, details = [Reason.MENDED] * len(gone), [Reason.MENDED.meaning] * len(gone)
        refused.append(_refused(Stage.READ, definition, raw, gone, reasons, details))
    if forgotten is not None:
        dropped = int((forgotten & stays).sum())
        stays &= ~forgotten
    if transform is not None:
        batch = _transformed(transform, raw)
        drops = _drops(batch, transform) & stays
        why = _rejections(batch, transform)
        rejects = np.array([text is not None for text in why], np.bool_) & ~drops & stays
        wrong = np.flatnonzero(rejects)
        details = [why[row] or "" for row in wrong.tolist()]
        reasons = [Reason.TRANSFORM] * len(wrong)
        refused.append(_refused(Stage.TRANSFORM, definition, raw, wrong, reasons, details))
        stays &= ~drops & ~rejects
        dropped += int(drops.sum())
    if not stays.all():
        rows = np.flatnonzero(stays)
        batch = batch.take(pa.array(rows))
    valid = validate(
        definition,
        batch,
        zone=zone,
        ambiguous=ambiguous,
        receipts=receipts,
    )
    wrong = rows[valid.rejected_rows]
    refused.append(_refused(Stage.VALIDATE, definition, raw, wrong, valid.reasons, valid.details))
    accepted, kept, resolved = valid.batch, rows[valid.kept], valid.resolved
    repeated = 0

    def refuse(refusals: Refusals) -> None:
        nonlocal accepted, kept, resolved
        wrong = np.array(sorted(refusals), np.int64)
        reasons = [refusals[row][0] for row in wrong.tolist()]
        details = [refusals[row][1] for row in wrong.tolist()]
        refused.append(_refused(Stage.ACCEPT, definition, raw, kept[wrong], reasons, details))
        accepted = accepted.take(pa.array(np.delete(np.arange(len(kept)), wrong)))
        kept, resolved = np.delete(kept, wrong), np.delete(resolved, wrong)

    if gate is not None and (refusals := gate.refuse(raw.partition, accepted)):
        refuse(refusals)
    if ids is not None and (refusals := ids.repeated(raw.partition, raw.positions[kept], accepted)):
        if ids.rejects:
            refuse(refusals)
        else:
            repeated = len(refusals)
    rejections = rejected.concat(refused)
    if sum(part.num_rows > 0 for part in refused) > 1:
        rejections = rejections.take(pc.sort_indices(rejections["position"]))
    return StreamBatch(
        accepted,
        raw.partition,
        raw.positions[kept],
        rejections,
        Counts(
            read=raw.batch.num_rows + raw.rejected.num_rows,
            kept=len(kept),
            dropped=dropped,
            rejected=rejections.num_rows,
            resolved=int(resolved.sum()),
            repeated=repeated,
        ),
    )


def _forgotten(definition: EventStream | Request, batch: pa.RecordBatch) -> BoolArray | None:
    """Tell which rows of an archive's file were forgotten; None for other files.

    The file has the places of its rows in the log, of which every other row has an id.
    """
    if not {*_PLACES, definition.id_column} <= {*batch.schema.names}:
        return None
    return forgotten_rows(definition, batch)


def _refused(
    stage: Stage,
    definition: EventStream | Request,
    raw: RawBatch,
    rows: Int64Array,
    reasons: Sequence[Reason],
    details: Sequence[str],
) -> pa.RecordBatch:
    if len(rows) == 0:
        return rejected.none()
    return rejected.batch(
        stage,
        stream=definition.name,
        partition=raw.partition,
        positions=raw.positions[rows],
        reasons=reasons,
        details=details,
        origins=raw.origins(rows),
        payloads=raw.payloads(rows),
    )


def _transformed(transform: Transform, raw: RawBatch) -> pa.RecordBatch:
    name = _name(transform)
    given = raw.batch.num_rows
    where = f"transform {name} on {given} rows of partition {raw.partition}"
    try:
        batch = transform(raw.batch)
    except Exception as error:
        raise InputError(
            f"{where} (columns {', '.join(raw.batch.schema.names)}): "
            f"{type(error).__name__}: {error}; rows that cannot be used get a text in "
            f"{REJECT_COLUMN!r}"
        ) from error
    if not isinstance(batch, pa.RecordBatch):
        raise InputError(
            f"{where}: returned {type(batch).__name__}, expected a pyarrow.RecordBatch"
        )
    if batch.num_rows != given:
        raise InputError(
            f"{where}: returned {batch.num_rows} rows; it must return every row, and mark those "
            f"that are no events in {DROP_COLUMN!r} and those that are wrong in {REJECT_COLUMN!r}"
        )
    return batch


def _drops(batch: pa.RecordBatch, transform: Transform) -> BoolArray:
    column = _marks(batch, DROP_COLUMN, pa.bool_(), transform)
    drops: BoolArray = column.fill_null(False).to_numpy(zero_copy_only=False)
    return drops


def _rejections(batch: pa.RecordBatch, transform: Transform) -> list[str | None]:
    texts: list[str | None] = _marks(batch, REJECT_COLUMN, pa.string(), transform).to_pylist()
    return texts


def _marks(batch: pa.RecordBatch, column: str, kind: pa.DataType, transform: Transform) -> pa.Array:
    if column not in batch.schema.names:
        return pa.nulls(batch.num_rows, kind)
    array = batch[column]
    if pa.types.is_null(array.type):
        return array.cast(kind)
    if array.type != kind:
        raise InputError(
            f"transform {_name(transform)}: column {column!r} is {array.type}, expected {kind}"
        )
    return array


def _name(transform: Transform) -> str:
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    return f"{transform.__module__}:{name}"
