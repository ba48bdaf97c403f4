"""The rows of a Parquet file, batch by batch, and a row as one line of JSON.

The promises:

* A Parquet file has no lines, so the payload of a rejected row is the row as a JSON object. Reading
  that object gives the same values again.
* Times of the type INT96, which Parquet deprecates and older programs write, are
  ``timestamp[us]`` columns. Arrow reads them as nanoseconds, whose 64 bits end in the year 2262:
  later times would silently be others. A row whose time is outside the years 1 to 9999, or has a
  part of a microsecond, is refused with the time that the file has.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT, SECOND, BoolArray, Int64Array
from tidemill.features.errors import InputError
from tidemill.features.rows.rejected import Reason
from tidemill.features.rows.text_values import WHOLE_MICROSECONDS

_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, eq=False)
class _Int96:
    """A column of INT96 times: seconds, int64, ``(rows,)``; nanoseconds of them; valid."""

    seconds: Int64Array
    nanoseconds: Int64Array
    valid: BoolArray

    @staticmethod
    def of(in_seconds: pa.Array, in_nanoseconds: pa.Array) -> _Int96:
        """Combine both readings of a column: seconds are floors, nanoseconds are modulo 2**64."""
        seconds, wrapped = (
            array.cast(pa.int64()).fill_null(0).to_numpy().astype(np.uint64)
            for array in (in_seconds, in_nanoseconds)
        )
        rest = wrapped - seconds * np.uint64(_NANOSECONDS)
        valid = in_seconds.is_valid().to_numpy(zero_copy_only=False)
        return _Int96(seconds.astype(np.int64), rest.astype(np.int64), valid)

    @property
    def outside(self) -> BoolArray:
        """bool, ``(rows,)``: the time is outside the years 1 to 9999."""
        early = self.seconds < EARLIEST_EVENT // SECOND
        outside: BoolArray = self.valid & (early | (self.seconds > LATEST_EVENT // SECOND))
        return outside

    @property
    def too_fine(self) -> BoolArray:
        """bool, ``(rows,)``: the time has a part of a microsecond."""
        too_fine: BoolArray = self.valid & (self.nanoseconds % 1000 != 0)
        return too_fine

    def times(self) -> pa.Array:
        """Return timestamp[us], ``(rows,)``: the times, rounded down; null outside the years."""
        known = self.valid & ~self.outside
        seconds = np.where(known, self.seconds, 0)
        return pa.array(seconds * SECOND + self.nanoseconds // 1000, mask=~known).cast(
            pa.timestamp("us")
        )

    def text(self, row: int) -> str | None:
        """Return a time as it is in the file."""
        if not self.valid[row]:
            return None
        decimals = f"{self.nanoseconds[row]:09}"
        decimals = decimals[:6] if decimals.endswith("000") else decimals
        return f"{np.datetime64(int(self.seconds[row]), 's')}.{decimals}"


@dataclass(frozen=True, eq=False)
class Rows:
    """Successive rows of a Parquet file.

    Attributes:
        batch: All columns, ``(rows,)``; INT96 times are ``timestamp[us]``.
    """

    batch: pa.RecordBatch
    _int96: Mapping[str, _Int96] = field(default_factory=dict)

    def faults(self, columns: Collection[str] | None) -> dict[int, tuple[Reason, str]]:
        """Return the rows with an INT96 time that has no value: row to reason and detail.

        Args:
            columns: The columns whose times must have a value; None for all.
        """
        faults: dict[int, tuple[Reason, str]] = {}
        for name, times in self._int96.items():
            if columns is not None and name not in columns:
                continue
            for reason, rows, expected in (
                (Reason.TIME_OUT_OF_RANGE, times.outside, "a time in the years 1 to 9999, UTC"),
                (Reason.WRONG_TYPE, times.too_fine, WHOLE_MICROSECONDS),
            ):
                for row in np.flatnonzero(rows).tolist():
                    detail = (
                        f"column {name!r}: found {times.text(row)} (INT96), expected {expected}"
                    )
                    faults.setdefault(row, (reason, detail))
        return faults

    def payload(self, row: int) -> bytes:
        """Return a row as a JSON object; see `as_json`."""
        return as_json(self.batch, row, {n: c.text(row) for n, c in self._int96.items()})


def read_rows(file: BinaryIO, origin: str, *, batch_rows: int) -> Iterator[Rows]:
    """Read all columns of a Parquet file, batch by batch.

    Args:
        file: The file, seekable.
        origin: The file's name in errors.
        batch_rows: The most rows of a batch.

    Yields:
        Batches with at least one row, in order.

    Raises:
        InputError: The file is not Parquet, or is damaged.
    """
    try:
        source = pa.PythonFile(file, mode="r")
        parquet = pyarrow.parquet.ParquetFile(source, coerce_int96_timestamp_unit="s")
        leaves = map(parquet.schema.column, range(len(parquet.schema)))
        names = [c.name for c in leaves if c.physical_type == "INT96" and c.path == c.name]
        if not names:
            parquet = pyarrow.parquet.ParquetFile(source)
            for batch in parquet.iter_batches(batch_size=batch_rows):
                if batch.num_rows:
                    yield Rows(batch)
            return
        if repeated := [n for n in names if parquet.schema_arrow.names.count(n) > 1]:
            raise InputError(
                f"{origin}: has more than one column {repeated[0]!r}; rename or drop all but one"
            )
        exact = pyarrow.parquet.ParquetFile(source, coerce_int96_timestamp_unit="ns")
        for batch, fine in zip(
            parquet.iter_batches(batch_size=batch_rows),
            exact.iter_batches(batch_size=batch_rows, columns=names),
            strict=True,
        ):
            if batch.num_rows:
                int96 = {name: _Int96.of(batch[name], fine[name]) for name in names}
                yield _converted(batch, int96)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{origin}: cannot be read as Parquet ({error}); is it complete?"
        ) from error


def _converted(batch: pa.RecordBatch, int96: Mapping[str, _Int96]) -> Rows:
    for name, times in int96.items():
        place = batch.schema.get_field_index(name)
        batch = batch.set_column(place, pa.field(name, pa.timestamp("us")), times.times())
    return Rows(batch, int96)


def as_json(
    batch: pa.RecordBatch, row: int, instead: Mapping[str, str | None] | None = None
) -> bytes:
    """Return a row as a JSON object without spaces; texts keep their bytes, valid UTF-8 or not.

    Args:
        batch: The columns, ``(rows,)``.
        row: The row's index.
        instead: Texts to write for some columns in place of their values.
    """
    values = {name: _plain(batch[name][row]) for name in batch.schema.names} | dict(instead or {})
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode("utf-8", "surrogateescape")


def _plain(value: pa.Scalar) -> Any:
    kind = value.type
    if not value.is_valid:
        return None
    if pa.types.is_timestamp(kind):
        # Python's datetime has no nanoseconds and fewer years than Arrow.
        return f"{np.datetime64(value.value, kind.unit)}{'' if kind.tz is None else 'Z'}"
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return value.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return value.as_py()
