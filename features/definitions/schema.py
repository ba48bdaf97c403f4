"""Dtypes and schemas: what a column may hold, and the Arrow type of each dtype."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

import pyarrow as pa

from tidemill.features.definitions.arguments import check_column_name, check_kind, read_only
from tidemill.features.definitions.reserved import LOG_COLUMNS, check_not_reserved
from tidemill.features.errors import DefinitionError, UnknownColumn, WrongType, nearest, shown

INT64: Final = "int64"
FLOAT64: Final = "float64"
STRING: Final = "string"
BOOL: Final = "bool"
TIMESTAMP: Final = "timestamp"
DTYPES: Final = (INT64, FLOAT64, STRING, BOOL, TIMESTAMP)
NUMERIC: Final = (INT64, FLOAT64)
FEATURE_DTYPES: Final = (INT64, FLOAT64, BOOL, TIMESTAMP)
"""The dtypes of feature values: the kernel holds each as 64 bits (a bool as 0 or 1, a timestamp as
microseconds UTC)."""
KEY_DTYPES: Final = (STRING, INT64)

ARROW_TYPES: Final[Mapping[str, pa.DataType]] = {
    INT64: pa.int64(),
    FLOAT64: pa.float64(),
    STRING: pa.string(),
    BOOL: pa.bool_(),
    TIMESTAMP: pa.timestamp("us", tz="UTC"),
}
"""The Arrow type of each dtype."""

Schema = Mapping[str, str]
"""Column name to dtype (one of `DTYPES`)."""

Scalar = int | float | str | bool


class Origin(NamedTuple):
    """How the columns of a source came about; a digest of rows depends on it, and on all columns.

    Attributes:
        base: The columns that its first rows had, of the dtypes that they had first.
        added: The columns that it has got later, likewise.
    """

    base: Schema
    added: Schema


def check_schema(
    schema: Mapping[str, str], what: str, reserved: Collection[str] = LOG_COLUMNS
) -> Schema:
    """Check that a schema has columns, each of a known dtype; return a read-only copy.

    Args:
        schema: The schema.
        what: The definition that has the schema; used in the error.
        reserved: Names that no column may have.
    """
    copy = read_only(schema, f"{what}: the schema", "a dict such as {'at': 'timestamp'}")
    if not copy:
        raise DefinitionError(f"{what}: the schema has no columns")
    for column, dtype in copy.items():
        check_column_name(column, f"{what}: a column of the schema")
        check_not_reserved(column, reserved, f"{what}: column", "every row that is read")
        check_kind(dtype, str, f"{what}: the dtype of column {shown(column)}", "a text")
        if dtype not in DTYPES:
            raise WrongType(
                f"{what}: column {shown(column)} has dtype {shown(dtype)}; "
                f"{nearest(dtype, DTYPES)} (of {', '.join(DTYPES)})"
            )
    return copy


WIDENINGS: Final = ((INT64, FLOAT64),)
"""The dtypes of values that another dtype holds without loss: the narrower one, the wider one. An
integer beyond 2**53 is no float64, and its row is rejected."""


def has_grown(before: Schema, after: Schema) -> bool:
    """Tell whether rows with some columns can be read as rows with others, without loss."""
    return all(
        name in after and (dtype == after[name] or (dtype, after[name]) in WIDENINGS)
        for name, dtype in before.items()
    )


def check_widened(schema: Schema, widened: Mapping[str, str], what: str) -> Mapping[str, str]:
    """Check that columns had narrower dtypes before; return a read-only copy.

    Args:
        schema: The schema.
        widened: Column to the dtype that it had.
        what: The definition that has the schema; used in the error.
    """
    copy = read_only(widened, f"{what}: widened", "a dict such as {'amount': 'int64'}")
    for column, before in copy.items():
        check_column(schema, column, DTYPES, f"{what}: widened")
        if (before, schema[column]) not in WIDENINGS:
            raise WrongType(
                f"{what}: widened says that column {shown(column)} was {shown(before)}, and it is "
                f"{schema[column]}: only int64 to float64 keeps every value; declare a column of "
                "another name beside it"
            )
    return copy


def check_column(schema: Schema, column: str, dtypes: Iterable[str], what: str) -> None:
    """Check that a schema has a column, of one of some dtypes."""
    check_column_name(column, what)
    if column not in schema:
        raise UnknownColumn(
            f"{what} {shown(column)} is not in the schema; {nearest(column, schema)}"
        )
    if schema[column] not in dtypes:
        raise WrongType(
            f"{what} {shown(column)} must be {' or '.join(dtypes)}, found {schema[column]}"
        )
