"""Columns that a source has got since its first rows, and those that have become wider."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Self, cast

from tidemill.features.definitions.arguments import check_kind
from tidemill.features.definitions.schema import (
    DTYPES,
    Origin,
    Schema,
    check_column,
    check_widened,
)
from tidemill.features.errors import DefinitionError

_EVERY_ROW: Final = "every row has these"


class Growing:
    """A source that may get columns, or wider ones, and goes on with the rows that it has.

    Attributes:
        schema: Column to dtype.
        optional: The columns that it has got later: a row that lacks one has a null there. Without
            a value such a column is no part of what makes a row what it is.
        widened: Column to the narrower dtype that it had before. Whole numbers are taken for what
            they were.
    """

    schema: Schema
    optional: Sequence[str]
    widened: Mapping[str, str]
    row_name: ClassVar[str] = "event"
    """What a row of it is."""

    @property
    def required(self) -> tuple[str, ...]:
        """Columns in which no row may be null: time and id."""
        raise NotImplementedError

    def check_grown(self, what: str) -> None:
        """Check both attributes, and make them immutable.

        Args:
            what: The definition; used in the error.

        Raises:
            DefinitionError: They name columns that there are not, or that cannot grow.
        """
        self.check_columns("optional", _EVERY_ROW, what)
        object.__setattr__(self, "widened", check_widened(self.schema, self.widened, what))

    def check_columns(self, name: str, why: str, what: str) -> None:
        """Check an attribute that is a list of columns, none of which may be the time or the id.

        Args:
            name: The attribute.
            why: Why they may not be; used in the error.
            what: The definition; likewise.
        """
        columns = getattr(self, name)
        check_kind(columns, list | tuple, f"{what}: {name}", "a list of columns")
        object.__setattr__(self, name, tuple(columns))
        for column in columns:
            check_column(self.schema, column, DTYPES, f"{what}: {name}")
            if column in self.required:
                raise DefinitionError(
                    f"{what}: {name} names {column!r}, which is the {self.row_name}'s time or id; "
                    f"{why}"
                )
            if columns.count(column) > 1:
                raise DefinitionError(f"{what}: {name} names {column!r} twice")

    @property
    def origin(self) -> Origin:
        """The columns of its first rows, and those of `optional`; `widened` ones as before."""
        first = {name: self.widened.get(name, dtype) for name, dtype in self.schema.items()}
        return Origin(
            {name: dtype for name, dtype in first.items() if name not in self.optional},
            {name: first[name] for name in sorted(self.optional)},
        )

    def with_columns(self, columns: Schema) -> Self:
        """Return the source as it was when it had only some columns, of the dtypes that they had.

        Args:
            columns: These columns: all of its first ones, and some of `optional`.
        """
        if list(columns.items()) == list(self.schema.items()):
            return self
        return cast(Self, replace(cast(Any, self), **self._of_columns(columns)))

    def _of_columns(self, columns: Schema) -> dict[str, Any]:
        """Return the attributes that it had with only some columns."""
        return {
            "schema": dict(columns),
            "optional": [column for column in self.optional if column in columns],
            "widened": {
                column: before
                for column, before in self.widened.items()
                if columns.get(column) == self.schema[column]
            },
        }

    def _spec_of_columns(self, seen: Collection[str]) -> tuple[Schema, dict[str, Any]]:
        """Return the columns that a canonical form has, and what it says of their growth.

        Args:
            seen: The columns that are read: what was added to others, or was widened in them,
                changes nothing.
        """
        schema = {**self.origin.base} | {column: self.schema[column] for column in seen}
        # Only where it is declared, so that the hashes of other sources stay as they were.
        grown: dict[str, Any] = {}
        if optional := sorted(column for column in self.optional if column in schema):
            grown["optional"] = optional
        if widened := {name: self.widened[name] for name in sorted(self.widened) if name in seen}:
            grown["widened"] = widened
        return dict(sorted(schema.items())), grown
