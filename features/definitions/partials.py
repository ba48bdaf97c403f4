"""Partials: the monoids of a tile that the kernel keeps for aggregations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tidemill.features.definitions.expressions import Expression


@dataclass(frozen=True, eq=False)
class Mask:
    """Which rows a partial takes: ``where`` is true, and ``not_null`` is not null."""

    where: Expression | None = None
    not_null: Expression | None = None

    def spec(self) -> list[Any]:
        """Return a canonical JSON value."""
        return [
            None if self.where is None else self.where.spec(),
            None if self.not_null is None else self.not_null.spec(),
        ]


@dataclass(frozen=True, eq=False)
class Partial:
    """One monoid of a tile: a kernel fold over one input under one mask.

    Attributes:
        fold: The name of the kernel fold.
        mask: The rows it takes.
        value: The expression that it folds; None if it folds the rows themselves.
        size: A size the fold needs to know (``k`` of last-k), else 0.
    """

    fold: str
    mask: Mask
    value: Expression | None = None
    size: int = 0

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it reads."""
        read = (self.mask.where, self.mask.not_null, self.value)
        return frozenset().union(*(one.columns() for one in read if one is not None))

    def spec(self) -> list[Any]:
        """Return a canonical JSON value; equal specs share one partial."""
        value = None if self.value is None else self.value.spec()
        return [self.fold, self.mask.spec(), value, self.size]
