"""Dtypes and schemas: what a column may hold, and how it stands in an Arrow batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import pyarrow as pa

from tidemill.features.errors import DefinitionError, UnknownColumn, WrongType, nearest

INT64: Final = "int64"
FLOAT64: Final = "float64"
STRING: Final = "string"
BOOL: Final = "bool"
TIMESTAMP: Final = "timestamp"
DTYPES: Final = (INT64, FLOAT64, STRING, BOOL, TIMESTAMP)
NUMERIC: Final = (INT64, FLOAT64)
KEY_DTYPES: Final = (STRING, INT64)

ARROW_TYPES: Final[Mapping[str, pa.DataType]] = {
    INT64: pa.int64(),
    FLOAT64: pa.float64(),
    STRING: pa.string(),
    BOOL: pa.bool_(),
    TIMESTAMP: pa.timestamp("us", tz="UTC"),
}
"""How each dtype stands in an Arrow batch."""

Schema = Mapping[str, str]
"""Column name to dtype (one of `DTYPES`)."""

Scalar = int | float | str | bool


def check_schema(schema: Mapping[str, str], what: str) -> None:
    """Check that a schema has columns, each of a known dtype."""
    if not schema:
        raise DefinitionError(f"{what}: the schema has no columns")
    for column, dtype in schema.items():
        if dtype not in DTYPES:
            raise WrongType(
                f"{what}: column {column!r} has dtype {dtype!r}; {nearest(str(dtype), DTYPES)} "
                f"(of {', '.join(DTYPES)})"
            )


def check_column(schema: Schema, column: str, dtypes: Iterable[str], what: str) -> None:
    """Check that a schema has a column, of one of some dtypes."""
    if column not in schema:
        raise UnknownColumn(f"{what} {column!r} is not in the schema; {nearest(column, schema)}")
    if schema[column] not in dtypes:
        raise WrongType(f"{what} {column!r} must be {' or '.join(dtypes)}, found {schema[column]}")
