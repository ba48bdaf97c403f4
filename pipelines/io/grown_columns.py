"""Whether the columns of a source may be those of its log from now on, and what changes with them.

A log keeps the columns of its first rows. A column that is added is null in the rows before, and a
wider dtype holds their values; so both can be read together with later rows, and have the digests
that they had (`features.kernel.base_columns`). Whatever else changes is refused by name.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import pyarrow.compute as pc

from tidemill.features.definitions import INT64, EventStream, Project, Request, Schema
from tidemill.features.definitions.schema import WIDENINGS
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.io.log import Log, definitions_of

_EXACT: Final = 2**53
_NEW_ROOT: Final = "or begin a new root"


def refused_columns(log: Log, definition: EventStream | Request) -> str:
    """Say why a source cannot go on with its log; empty if it can.

    Args:
        log: The log.
        definition: The source, as it is declared now.
    """
    written, base = log.columns(definition.name), log.origin(definition.name).base
    schema, optional = definition.schema, definition.optional
    gone = [name for name in written if name not in schema]
    new = [name for name in schema if name not in written and name not in optional]
    if gone:
        renamed = [name for name in schema if name not in written]
        like = [name for name in renamed if schema[name] == written[gone[0]]]
        named = (
            f" (if {like[0]!r} is its new name, keep both, and that one optional)" if like else ""
        )
        return (
            f"column {gone[0]!r} is in its log and no longer declared; a log keeps its columns: "
            f"declare it still, whether it is sent or not{named}, {_NEW_ROOT}"
        )
    for name, dtype in written.items():
        now = schema[name]
        if now == dtype:
            continue
        if (dtype, now) not in WIDENINGS:
            return (
                f"column {name!r} is {dtype} in its log and {now} now, which does not hold every "
                "value: set it back, and declare an optional column of another name beside it, "
                f"{_NEW_ROOT}"
            )
        if name not in definition.widened:
            return (
                f"column {name!r} is {dtype} in its log and {now} now: declare "
                f"widened={{{name!r}: {dtype!r}}}, so that earlier rows are what they were"
            )
    if new:
        return (
            f"column {new[0]!r} is new, and the rows before have no value: declare "
            f"optional=[{new[0]!r}], which makes it null there, {_NEW_ROOT}"
        )
    mine = definition.origin
    if list(mine.base.items()) != list(base.items()):
        return _other_base(mine.base, base)
    for name, dtype in log.origin(definition.name).added.items():
        if mine.added.get(name) != dtype:
            return _other_first(name, dtype, mine.added.get(name))
    return ""


def _other_base(mine: Schema, base: Schema) -> str:
    """Say how the columns that a source had first are others now."""
    for name, dtype in base.items():
        if name not in mine:
            return (
                f"column {name!r} is optional now, and its log began with it: only a column that "
                f"came later can be optional: take it out of optional, {_NEW_ROOT}"
            )
        if mine[name] != dtype:
            return _other_first(name, dtype, mine[name])
    for name in mine:
        if name not in base:
            return (
                f"column {name!r} came later than the first rows of its log: declare "
                f"optional=[{name!r}] still, {_NEW_ROOT}"
            )
    return "its columns are in another order than in its log: set the order back"


def _other_first(name: str, dtype: str, mine: str | None) -> str:
    return (
        f"column {name!r} was {dtype} at first, and is declared to have been {mine}: set widened "
        f"back to {{{name!r}: {dtype!r}}}"
    )


class ColumnChange(NamedTuple):
    """A column that a source gets, or that becomes wider.

    Attributes:
        column: Its name.
        before: The dtype that it has in the log; None of a new one.
        dtype: Its dtype.
    """

    column: str
    before: str | None
    dtype: str

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.column!r} ({self.dtype}) is new, and null in the rows before"
        return f"{self.column!r} becomes {self.dtype}, from {self.before}"


def changed_columns(log: Log, definition: EventStream | Request) -> list[ColumnChange]:
    """Return the columns that a source gets, and those that become wider."""
    written = log.columns(definition.name)
    return [
        ColumnChange(name, written.get(name), dtype)
        for name, dtype in definition.schema.items()
        if written.get(name) != dtype
    ]


def inexact_value(log: Log, definition: EventStream | Request) -> str:
    """Say which value of a log its column's wider dtype does not hold; empty if it holds all.

    Args:
        log: The log; its files are read where an integer becomes a float.
        definition: The source, as it is declared now.
    """
    name = definition.name
    narrow = Log(log.root, log.live)
    written = narrow.columns(name)
    wider = [
        column
        for column, dtype in written.items()
        if dtype == INT64 and definition.schema.get(column, dtype) != dtype
    ]
    for partition in range(narrow.partitions(name) if wider else 0):
        for rows in narrow.batches(name, partition):
            for column in (one for one in wider if one in rows.schema.names):
                values = rows.column(column).drop_null()
                most = pc.min_max(values).as_py()
                for value in (most["min"], most["max"]):
                    if value is not None and abs(value) > _EXACT:
                        return (
                            f"column {column!r} has the value {value} in partition {partition} of "
                            "its log, and no float64 is every integer beyond 2**53: leave the "
                            "column as it is, and declare an optional one of another name"
                        )
    return ""


def check_goes_on_with(log: Log, project: Project) -> None:
    """Check that the sources of a project can be read on after the rows of a log.

    Raises:
        StateMismatch: A source has columns that its log cannot have.
    """
    for definition in definitions_of(project):
        if why := refused_columns(log, definition) or inexact_value(log, definition):
            raise StateMismatch(f"source {definition.name!r}: {why}")
