"""Rows that a test writes become validated rows, through the validation of production.

What is promised here:

* A list of dicts is read as a JSON Lines file is: each value as its text, so that no row depends on
  the other rows, and a key that a dict leaves out is null. A key that the schema does not declare
  is an error: it is probably misspelt.
* A pandas DataFrame, a `pa.Table`, a `pa.RecordBatch` or anything else that exports an Arrow stream
  is read as a Parquet file is: columns that are not declared are ignored, a declared one that is
  missing rejects every row. NaN in a pandas DataFrame is null, as in pandas itself.
* A time is an aware ``datetime``, an ISO 8601 text with its offset, or an int of microseconds UTC.
  A time without an offset is rejected (``naive_time``): a test declares no zone.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array, time_of
from tidemill.features.definitions import ARROW_TYPES, TIMESTAMP, EventStream, Request
from tidemill.features.errors import InputError, nearest
from tidemill.features.kernel import hashing
from tidemill.features.rows.validation import Validated, validate
from tidemill.pipelines.io.log import one_batch
from tidemill.pipelines.io.request_ids import RequestIds

if TYPE_CHECKING:
    import pandas as pd

Rows: TypeAlias = "Sequence[Mapping[str, object]] | pd.DataFrame | pa.Table | pa.RecordBatch"
"""Rows of a stream or of requests."""

Instant = datetime.datetime | str | int
"""A time: aware, or ISO 8601 with its offset, or microseconds UTC."""

REJECTED_ROWS: Final = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""The columns of rejected rows.

* source: the stream or the request. row: its place in what was given, from 0.
* reason: a code (`tidemill.features.rows.rejected.Reason`). detail: what was found and expected.
"""

_LISTED: Final = 5


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """The rows of one stream or of the requests, before and after validation.

    Attributes:
        definition: The stream or the request.
        given: The rows before validation, in Arrow.
        validated: The result of validation.
    """

    definition: EventStream | Request
    given: pa.RecordBatch
    validated: Validated

    @property
    def rows(self) -> pa.RecordBatch:
        """The accepted rows, in order, in the declared columns and types."""
        return self.validated.batch

    @property
    def rejected(self) -> pa.Table:
        """The rejected rows: a table of `REJECTED_ROWS`."""
        found = self.validated
        return pa.table(
            [
                pa.repeat(pa.scalar(self.definition.name, pa.string()), len(found.reasons)),
                pa.array(found.rejected_rows, pa.int64()),
                pa.array([str(reason) for reason in found.reasons], pa.string()),
                pa.array(found.details, pa.string()),
            ],
            schema=REJECTED_ROWS,
        )

    def refuse_rejected(self) -> None:
        """Raise where a row was rejected.

        Raises:
            InputError: It names the first of them: source, row, reason, detail and the row itself.
        """
        rejected = self.rejected.to_pylist()
        if not rejected:
            return
        shown = [
            f"  row {one['row']}: {one['reason']}: {one['detail']}\n    "
            f"{self.given.slice(one['row'], 1).to_pylist()[0]}"
            for one in rejected[:_LISTED]
        ]
        if len(rejected) > _LISTED:
            shown.append(f"  and {len(rejected) - _LISTED} more")
        raise InputError(
            f"{self.definition.name!r}: {len(rejected)} of {self.given.num_rows} rows are rejected "
            "(a pipeline leaves them out; so does features_at with skip_rejected=True, and "
            "tidemill.testing.rejected_rows lists them):\n" + "\n".join(shown)
        )


def check_rows(definition: EventStream | Request, rows: Rows) -> CheckedRows:
    """Validate rows against a declared schema; of requests with one id, accept the first.

    Args:
        definition: The event stream or request.
        rows: See `Rows`.

    Raises:
        InputError: The argument is not rows, or a dict has a key that is not declared.
    """
    given = arrow_rows(definition, rows)
    found = validate(definition, given)
    if isinstance(definition, Request):
        found = _with_own_ids(definition, found)
    return CheckedRows(definition, given, found)


def _with_own_ids(request: Request, found: Validated) -> Validated:
    """Reject requests with a repeated id, if the request does not count them instead."""
    ids = RequestIds(request, lambda _, row: f"row {row}")
    refusals = ids.repeated(0, found.kept, found.batch)
    if not refusals or not ids.rejects:
        return found
    wrong = np.array(sorted(refusals), np.int64)
    kept = np.delete(np.arange(len(found.kept)), wrong)
    faults = {
        **dict(
            zip(
                found.rejected_rows.tolist(),
                zip(found.reasons, found.details, strict=True),
                strict=True,
            )
        ),
        **{int(found.kept[row]): why for row, why in refusals.items()},
    }
    rows = sorted(faults)
    return Validated(
        batch=found.batch.take(pa.array(kept)),
        kept=found.kept[kept],
        rejected_rows=np.array(rows, np.int64),
        reasons=tuple(faults[row][0] for row in rows),
        details=tuple(faults[row][1] for row in rows),
        resolved=found.resolved[kept],
    )


def arrow_rows(definition: EventStream | Request, rows: Rows) -> pa.RecordBatch:
    """Return rows as one Arrow batch, before validation; see `check_rows`."""
    what = f"rows of {definition.name!r}"
    try:
        if isinstance(rows, pa.RecordBatch):
            table = pa.Table.from_batches([rows])
        elif hasattr(rows, "__arrow_c_stream__"):
            table = pa.table(rows)
        elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
            table = _from_dicts(definition, rows)
        else:
            raise InputError(
                f"{what}: found a {type(rows).__name__}, expected a list of dicts, a pandas "
                "DataFrame, a pa.Table or a pa.RecordBatch"
            )
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise InputError(f"{what} cannot be read as Arrow columns: {error}") from error
    for place, field in enumerate(table.schema):
        if definition.schema.get(field.name) == TIMESTAMP and pa.types.is_signed_integer(
            field.type
        ):
            times = table.column(place).cast(pa.int64()).cast(ARROW_TYPES[TIMESTAMP])
            table = table.set_column(place, field.name, times)
    return one_batch(table)


def _from_dicts(definition: EventStream | Request, rows: Sequence[Any]) -> pa.Table:
    schema = definition.schema
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                f"rows of {definition.name!r}: row {number} is a {type(row).__name__}, expected a "
                f"dict with the columns {', '.join(schema)}"
            )
        if not row.keys() <= schema.keys():
            name = next(name for name in row if name not in schema)
            raise InputError(
                f"rows of {definition.name!r}: row {number} has {name!r}, which is no column of "
                f"the schema; {nearest(str(name), schema)}"
            )
    return pa.table(
        {
            name: (_times if dtype == TIMESTAMP else _texts)([row.get(name) for row in rows])
            for name, dtype in schema.items()
        }
    )


def _times(values: list[Any]) -> pa.Array:
    """Return times as microseconds if all are aware or ints, else as texts for validation."""
    numbers: list[int | None] = []
    for value in values:
        number = _microseconds(value)
        if number is None and value is not None:
            return _texts([_iso(value) for value in values])
        numbers.append(number)
    return pa.array(numbers, pa.int64())


def _microseconds(value: Any) -> int | None:
    if type(value) is datetime.datetime and value.utcoffset() is not None:
        return time_of(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value) if -(2**63) <= value < 2**63 else None
    return None


def _iso(value: Any) -> Any:
    """Write a time as ISO 8601, so that validation can judge it."""
    number = _microseconds(value)
    if number is not None:
        return f"{np.datetime64(number, 'us')}Z"
    return value.isoformat() if isinstance(value, datetime.datetime) else value


def _texts(values: list[Any]) -> pa.Array:
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return repr(float(value))
    return str(value)


def instants(values: Instant | Sequence[Instant] | Any) -> Int64Array:
    """Return instants as int64 microseconds UTC.

    Args:
        values: One or several: see `Instant`; a pandas or Arrow column of times does too.

    Raises:
        InputError: One is not a time, has no offset, or is outside the years 1 to 9999.
    """
    given = [values] if isinstance(values, datetime.datetime | str | int) else list(values)
    rows = [
        {"time": one.as_py() if isinstance(one, pa.Scalar) else one, "id": place}
        for place, one in enumerate(given)
    ]
    found = check_rows(_INSTANTS, rows).validated
    if found.details:
        place = int(found.rejected_rows[0])
        raise InputError(
            f"instant {given[place]!r}: {found.reasons[0].meaning}; give an aware datetime, an ISO "
            "8601 text with its offset such as 2026-01-31T17:05:00Z, or an int of microseconds UTC"
        )
    return hashing.bits(found.batch.column("time"))


_INSTANTS: Final = EventStream(
    "instants", schema={"time": "timestamp", "id": "int64"}, event_time="time", event_id="id"
)
