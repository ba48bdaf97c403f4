"""The kernel's functions by name: folds (one per partial) and finishes (one per aggregation).

A **fold** is one compiled function that handles a batch's steps in order: an event step merges the
row into its tile, a query step merges the tiles of each window into an answer. A **finish** turns
the merged answers of a feature's partials into the feature's values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tidemill.features.errors import DuplicateName

OWNS_NOTHING: Final = 0
OWNS_WIDE_SUM: Final = 1
OWNS_WIDE_SQUARE: Final = 2
OWNS_ID: Final = 3
OWNS_LAST_K: Final = 4
OWNS_SKETCH: Final = 5
OWNS_SET: Final = 6


@dataclass(frozen=True)
class Fold:
    """One monoid of the kernel.

    Attributes:
        name: Its name in `Partial.fold`.
        run: The compiled function; `features.kernel.folds.counts_and_extremes` lists its arguments.
        identity: The words of the empty partial.
        owns: The kind of arena block that its words refer to (``OWNS_...``).
        answer_words: Words of an answer; 0 means ``2 * size`` (value and presence per element).
        hashed: Whether it takes the 64-bit hash of a value.
        takes_param: Whether its answer depends on the aggregation's parameter.
        scratch_words: Words of scratch that it needs; zeroed once, then kept between calls.
        variant: Identifies the fold to a function that serves several.
    """

    name: str
    run: Callable[..., Any]
    identity: tuple[int, ...]
    owns: int = OWNS_NOTHING
    answer_words: int = 1
    hashed: bool = False
    takes_param: bool = False
    scratch_words: int = 0
    variant: int = 0


@dataclass(frozen=True)
class Finish:
    """How merged answers become values.

    Attributes:
        name: Its name in `Aggregation.finish`.
        run: The compiled function; `features.kernel.folds.finish` lists its arguments.
        variant: Identifies the finish to a function that serves several.
    """

    name: str
    run: Callable[..., Any]
    variant: int = 0


FOLDS: dict[str, Fold] = {}
"""The folds by name."""
FINISHES: dict[str, Finish] = {}
"""The finishes by name."""


def fold(
    name: str,
    identity: tuple[int, ...],
    *,
    owns: int = OWNS_NOTHING,
    answer_words: int = 1,
    hashed: bool = False,
    takes_param: bool = False,
    scratch_words: int = 0,
    variant: int = 0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a compiled function as the fold ``name``."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        if name in FOLDS:
            raise DuplicateName(f"a fold named {name!r} is registered already")
        FOLDS[name] = Fold(
            name, run, identity, owns, answer_words, hashed, takes_param, scratch_words, variant
        )
        return run

    return register


def finish(name: str, *, variant: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a compiled function as the finish ``name``."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        if name in FINISHES:
            raise DuplicateName(f"a finish function named {name!r} is registered already")
        FINISHES[name] = Finish(name, run, variant)
        return run

    return register
