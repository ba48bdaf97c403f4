"""Validation: raw rows become rows of the declared schema, or are rejected with a reason.

What is promised here:

* `validate` checks every value of every declared column and ignores other columns. The rows that it
  keeps have exactly the declared columns, order and Arrow types; no null in a required column, no
  NaN and no infinity; ``-0.0`` is ``0.0``. A request's id has at most `LONGEST_ID` bytes.
* Every other row is rejected with one reason: that of the first declared column with a fault.
* The outcome for a row depends only on the row and on the batch's columns, never on other rows:
  however rows are sliced into batches, the same rows are rejected for the same reasons. The one
  exception is a repeated local time of receipt, which is resolved by the rows before it
  (`local_times`); slices make no difference there either.

A column may hold text (a csv file's cells) or be typed already:

=========  ===========================  ====================================================
declared   as text                      typed
=========  ===========================  ====================================================
int64      `text_values`                any integer type, in range; a decimal as its digits
float64    `text_values`                any float type; integers from -2**53 to 2**53; a decimal
                                        as its digits
bool       `text_values`                bool
string     any UTF-8                    none
timestamp  `text_values`                any unit if no part of a microsecond is lost, as UTC
                                        or local to the source's zone; never a date
=========  ===========================  ====================================================

Text is string, large string, string view, binary that is UTF-8, or a dictionary of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features import zones
from tidemill.features.contract import (
    EARLIEST_EVENT,
    LATEST_EVENT,
    MILLISECOND,
    SECOND,
    BoolArray,
    Int64Array,
)
from tidemill.features.definitions import (
    ARROW_TYPES,
    BOOL,
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    EventStream,
    Request,
)
from tidemill.features.errors import InputError, nearest
from tidemill.features.rows.local_times import Receipts
from tidemill.features.rows.rejected import Reason
from tidemill.features.rows.source_clock import SourceClock
from tidemill.features.rows.text_values import (
    WHOLE_MICROSECONDS,
    Parsed,
    expected_of_time,
    flags,
    parse,
    repeated,
)

EXACT_IN_FLOAT64: Final = 2**53
"""Every integer up to here, in either direction, is a float64."""


@dataclass(frozen=True, eq=False)
class Validated:
    """The result of validating a batch: the rows that were kept, and the rejected ones.

    Attributes:
        batch: The rows that were kept, in order, in the declared columns and types.
        kept: int64, ``(kept rows,)``: their indices in the batch that was validated.
        rejected_rows: int64, ``(rejected rows,)``: the indices of the others, ascending.
        reasons: ``(rejected rows,)``: one reason each.
        details: ``(rejected rows,)``: what was found, where, what was expected.
        resolved: bool, ``(kept rows,)``: a local time of the row occurred twice, and the source's
            rule chose the instant.
    """

    batch: pa.RecordBatch
    kept: Int64Array
    rejected_rows: Int64Array
    reasons: tuple[Reason, ...]
    details: tuple[str, ...]
    resolved: BoolArray


_Faults = dict[int, tuple[Reason, str]]

LONGEST_ID: Final = 4_096
"""The most bytes of a request's id: it is the key of a message, and in its value, too."""

_MINUS_ZERO: Final = np.iinfo(np.int64).min
"""The bits of -0.0."""

_EXPECTED: Final = {
    INT64: "int64: a whole number from -2**63 to 2**63 - 1 such as 42",
    FLOAT64: "float64: a number such as 1.5",
    BOOL: "bool: true, false, 1 or 0",
    STRING: "string: a text",
    TIMESTAMP: "timestamp: a date and time with its offset such as 2013-01-31T17:05:00Z",
}
_UTF8: Final = (
    r"\A(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]"
    r"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}"
    r"|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*\z"
)
"""Well-formed UTF-8 (The Unicode Standard, table 3-7), over bytes."""


def validate(
    definition: EventStream | Request,
    batch: pa.RecordBatch,
    *,
    nulls: Sequence[str] = (),
    zone: str | None = None,
    ambiguous: str | None = None,
    receipts: Receipts | None = None,
) -> Validated:
    """Judge every row of a raw batch against a declared schema.

    Where the batch lacks a column that the stream declares as optional, its rows have a null there.

    Args:
        definition: The event stream or request that declares the schema.
        batch: The rows as read, ``(rows,)``: text or typed columns.
        nulls: Texts that mean null.
        zone: The IANA zone of times without an offset; None where the source declares none.
        ambiguous: The rule for local times that occurred twice (`local_times.RULES`); None rejects
            their rows.
        receipts: The time-of-receipt column, by which `local_times.INFER` decides: without it that
            rule rejects, too. Its state follows the rows.

    Returns:
        The rows that were kept and, for every other, why not.

    Raises:
        InputError: The batch has two columns of a declared name.
        DefinitionError: The zone does not exist.
    """
    schema = definition.schema
    if zone is not None:
        zones.zone(zone)
    names = batch.schema.names
    for name in schema:
        if names.count(name) > 1:
            raise InputError(
                f"{definition.name!r}: the input has {names.count(name)} columns named {name!r}; "
                "rename or drop all but one"
            )
    optional = definition.optional
    if missing := [name for name in schema if name not in names and name not in optional]:
        detail = f"the input has no column {missing[0]!r}; {nearest(missing[0], names)}"
        return _judged(
            {name: pa.nulls(batch.num_rows, ARROW_TYPES[dtype]) for name, dtype in schema.items()},
            dict.fromkeys(range(batch.num_rows), (Reason.MISSING_COLUMN, detail)),
            np.zeros(batch.num_rows, np.bool_),
        )
    clock = SourceClock(batch.num_rows, zone, ambiguous, receipts)
    # Times of receipt come first: other times are inferred from them.
    conformed = {
        name: _conform(batch.column(name), name, schema[name], nulls, clock)
        if name in names
        else (pa.nulls(batch.num_rows, ARROW_TYPES[schema[name]]), {})
        for name in sorted(schema, key=lambda name: not clock.is_receipt(name))
    }
    columns: dict[str, pa.Array] = {}
    faults: _Faults = {}
    for name in schema:
        columns[name], found = conformed[name]
        if name in definition.required and columns[name].null_count:
            reason, what = _null_reason(definition, name)
            detail = f"column {name!r}: found null, expected the {what} of every row"
            for row in np.flatnonzero(flags(pc.is_null(columns[name]))).tolist():
                found.setdefault(row, (reason, detail))
        if isinstance(definition, Request) and name == definition.request_id:
            found = _too_long(columns[name], name) | found
        faults = found | faults
    return _judged(columns, faults, clock.resolved)


def _too_long(ids: pa.Array, name: str) -> _Faults:
    """Return the faults of the rows whose id is too long."""
    if not pa.types.is_string(ids.type) or ids.nbytes <= LONGEST_ID:
        return {}
    lengths = pc.fill_null(pc.binary_length(ids), 0)
    rows = np.flatnonzero(flags(pc.greater(lengths, LONGEST_ID)))
    expected = f"expected an id of at most {LONGEST_ID:,}"
    return {
        row: (
            Reason.TOO_LONG,
            f"column {name!r}: found a text of {lengths[row].as_py():,} bytes, {expected}",
        )
        for row in rows.tolist()
    }


def _judged(columns: dict[str, pa.Array], faults: _Faults, resolved: BoolArray) -> Validated:
    batch = pa.RecordBatch.from_arrays(
        list(columns.values()),
        schema=pa.schema([(name, column.type) for name, column in columns.items()]),
    )
    kept = np.arange(batch.num_rows, dtype=np.int64)
    rejected = np.array(sorted(faults), np.int64)
    if len(rejected):
        kept = np.delete(kept, rejected)
        batch = batch.take(pa.array(kept))
    ordered = [faults[row] for row in rejected.tolist()]
    return Validated(
        batch,
        kept,
        rejected,
        tuple(reason for reason, _ in ordered),
        tuple(detail for _, detail in ordered),
        resolved[kept],
    )


def _null_reason(definition: EventStream | Request, name: str) -> tuple[Reason, str]:
    if name == definition.time_column:
        return Reason.NULL_TIME, "time"
    return Reason.NULL_ID, "id"


def _conform(
    array: pa.Array, name: str, dtype: str, nulls: Sequence[str], clock: SourceClock
) -> tuple[pa.Array, _Faults]:
    """Return a column in its declared Arrow type and the faults of the rows that do not fit."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), ARROW_TYPES[dtype]), {}
    if not (nulls and dtype == STRING) and _is_right(array, dtype):
        return array, {}
    if pa.types.is_decimal(array.type) and dtype in (INT64, FLOAT64):
        digits = array.cast(pa.string())
        return _finished(parse(digits, dtype, clock.zone), array, name, dtype, clock)
    if not _is_text(array.type):
        return _finished(_from_typed(array, dtype, clock.zone), array, name, dtype, clock)
    text, faults = _as_utf8(array, name)
    if nulls:
        is_null = pc.is_in(text, value_set=pa.array(nulls, pa.string()))
        text = pc.if_else(is_null, pa.scalar(None, pa.string()), text)
    if dtype == STRING:
        return text, faults
    column, more = _finished(parse(text, dtype, clock.zone), text, name, dtype, clock)
    return column, more | faults


def _is_right(array: pa.Array, dtype: str) -> bool:
    """Tell whether a column is as a validated one is: most are that were validated before."""
    if array.type != ARROW_TYPES[dtype]:
        return False
    if dtype == STRING:
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            return False
        return True
    if dtype in (INT64, BOOL):
        return True
    if array.null_count or not len(array):
        return False
    words = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array)]
    if dtype == FLOAT64:
        return bool(np.isfinite(words.view(np.float64)).all() and (words != _MINUS_ZERO).all())
    return bool(words.min() >= EARLIEST_EVENT and words.max() <= LATEST_EVENT)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _as_utf8(array: pa.Array, name: str) -> tuple[pa.Array, _Faults]:
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.binary_view())
    raw = array.cast(pa.binary())
    try:
        # From binary, Arrow checks every byte; between kinds of strings it trusts what it has.
        return raw.cast(pa.string()), {}
    except pa.ArrowInvalid:
        well_formed = pc.match_substring_regex(raw, _UTF8)
    faults: _Faults = {}
    for row in np.flatnonzero(flags(pc.invert(well_formed))).tolist():
        shown = _shortened(repr(raw[row].as_py()))
        detail = f"column {name!r}: found {shown}, expected a text in UTF-8"
        faults[row] = (Reason.INVALID_UTF8, detail)
    text = pc.if_else(well_formed, raw, pa.scalar(None, pa.binary())).cast(pa.string())
    return text, faults


def _from_typed(array: pa.Array, dtype: str, zone: str | None) -> Parsed:
    kind, valid = array.type, flags(pc.is_valid(array))
    values: npt.NDArray[Any]
    last = np.zeros(0, np.int64)
    wrong: list[tuple[Reason, BoolArray]] = []
    if dtype == TIMESTAMP and pa.types.is_timestamp(kind):
        values, last, wrong = _typed_times(array, valid, zone)
    elif dtype == BOOL and pa.types.is_boolean(kind):
        values = flags(array)
    elif dtype == FLOAT64 and pa.types.is_floating(kind):
        values = _numpy(array).astype(np.float64)
    elif dtype in (INT64, FLOAT64) and pa.types.is_integer(kind):
        given = _numpy(array)
        if dtype == FLOAT64:
            too_big = (given > EXACT_IN_FLOAT64) | (given < -EXACT_IN_FLOAT64)
        else:
            too_big = given > np.iinfo(np.int64).max
        wrong = [(Reason.WRONG_TYPE, too_big)]
        values = given.astype(np.float64 if dtype == FLOAT64 else np.int64)
    else:
        values = np.zeros(len(array), np.int64)
        wrong = [(Reason.WRONG_TYPE, np.ones(len(array), np.bool_))]
    refused: dict[int, Reason] = {}
    for reason, rows in wrong:
        for row in np.flatnonzero(rows & valid).tolist():
            refused.setdefault(row, reason)
    valid = valid.copy()
    valid[list(refused)] = False
    twice = repeated(values, last, valid) if len(last) else None
    return Parsed(values, valid, refused, twice)


def _typed_times(
    array: pa.Array, valid: BoolArray, zone: str | None
) -> tuple[Int64Array, Int64Array, list[tuple[Reason, BoolArray]]]:
    """Return the first and the last instants in microseconds UTC; by reason, rows with none."""
    given = _numpy(array.cast(pa.int64()))
    everywhere = np.ones(len(given), np.bool_)
    if array.type.unit == "ns":
        wrong = [(Reason.WRONG_TYPE, given % 1000 != 0)]
        times = given // 1000
    else:
        scale = {"s": SECOND, "ms": MILLISECOND, "us": 1}[array.type.unit]
        beyond = (given > LATEST_EVENT // scale) | (given < -(-EARLIEST_EVENT // scale))
        wrong = [(Reason.TIME_OUT_OF_RANGE, beyond)]
        times = np.where(beyond, 0, given) * scale
    if array.type.tz is not None:
        return times, times, wrong
    if zone is None:
        return times, times, [(Reason.NAIVE_TIME, everywhere)]
    usable = np.flatnonzero(valid & ~wrong[0][1])
    instants, last = zones.localize(times[usable], zone), times.copy()
    times[usable], last[usable] = instants.first_us, instants.last_us
    skipped = ~everywhere
    skipped[usable[~instants.exists]] = True
    return times, last, [*wrong, (Reason.NONEXISTENT_LOCAL_TIME, skipped)]


def _finished(
    parsed: Parsed, source: pa.Array, name: str, dtype: str, clock: SourceClock
) -> tuple[pa.Array, _Faults]:
    """Judge the range of values and make the Arrow column, null where a row is refused."""
    if dtype == TIMESTAMP:
        clock.resolve(parsed, name)
    values, valid, refused = parsed.values, parsed.valid, parsed.refused
    checks: list[tuple[Reason, BoolArray]] = []
    if dtype == FLOAT64:
        values = values + 0.0  # makes -0.0 positive
        checks = [(Reason.NAN, np.isnan(values)), (Reason.INFINITY, np.isinf(values))]
    elif dtype == TIMESTAMP:
        outside = (values < EARLIEST_EVENT) | (values > LATEST_EVENT)
        checks = [(Reason.TIME_OUT_OF_RANGE, outside)]
    for reason, wrong in checks:
        rows = np.flatnonzero(wrong & valid)
        valid[rows] = False
        refused |= dict.fromkeys(rows.tolist(), reason)
    faults = {
        row: (reason, f"column {name!r}: found {_shown(source[row])}, expected {expected}")
        for row, reason in refused.items()
        for expected in [_expected(reason, name, dtype, clock, source[row])]
    }
    if dtype == STRING:
        return pa.nulls(len(values), pa.string()), faults
    return pa.array(values, mask=~valid).cast(ARROW_TYPES[dtype]), faults


def _expected(reason: Reason, name: str, dtype: str, clock: SourceClock, given: pa.Scalar) -> str:
    if reason == Reason.AMBIGUOUS_LOCAL_TIME:
        return clock.expected(name)
    if reason == Reason.WRONG_TYPE and dtype == TIMESTAMP:
        if pa.types.is_string(given.type):
            return expected_of_time(given.as_py()) or _EXPECTED[dtype]
        return WHOLE_MICROSECONDS if pa.types.is_timestamp(given.type) else _EXPECTED[dtype]
    return {
        Reason.NAN: "a finite number, or null",
        Reason.INFINITY: "a finite number that fits float64",
        Reason.TIME_OUT_OF_RANGE: "a time in the years 1 to 9999, UTC",
        Reason.NAIVE_TIME: "a time with Z or an offset, or a zone declared for its source",
        Reason.NONEXISTENT_LOCAL_TIME: (
            f"a time that clocks in {clock.zone} showed; they skipped it"
        ),
    }.get(reason, _EXPECTED[dtype])


def _shown(value: pa.Scalar) -> str:
    kind = value.type
    if pa.types.is_timestamp(kind):
        # Python's datetime has neither nanoseconds nor all the years that Arrow has.
        shown = f"{np.datetime64(value.value, kind.unit)}{'' if kind.tz is None else 'Z'}"
    else:
        shown = repr(value.as_py())
    return _shortened(shown) + ("" if pa.types.is_string(kind) else f" (of type {kind})")


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}... ({len(text)} characters)"


def _numpy(array: pa.Array) -> npt.NDArray[Any]:
    filled = array.fill_null(pa.scalar(0, array.type)) if array.null_count else array
    values: npt.NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return values
