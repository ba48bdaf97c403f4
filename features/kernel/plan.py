"""The plan of a view: the cells of a row, the layout of a tile, what a query asks.

A plan is made once from a `FeatureView`. Features that need the same partial (the same fold of the
same expression under the same mask) share it, whatever their windows.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import (
    Aggregation,
    Expression,
    FeatureColumn,
    FeatureView,
    Mask,
    Partial,
)
from tidemill.features.errors import DefinitionError
from tidemill.features.kernel.registry import FINISHES, FOLDS, Finish, Fold

MASKS_PER_WORD: Final = 64
TILE_HEADER: Final = 2
"""Words of a tile before its partials: its hop index, and the number of its rows."""


@dataclass(frozen=True)
class Ask:
    """What a query asks of a partial: its merge over one window, with a parameter.

    Attributes:
        window: Index of the window among the plan's windows, ascending.
        param: A parameter of the fold's answer, such as the ``q`` of a quantile.
    """

    window: int
    param: float


@dataclass(frozen=True)
class PlannedPartial:
    """A partial with its place in a row's cells and in a tile.

    Attributes:
        fold: The kernel fold.
        value_cell: The cell of a row that it takes, or -1.
        mask: The index of its mask.
        base: Its first word in the tile.
        size: ``k`` of last-k, else 0.
        asks: What queries ask of it, by ascending window.
    """

    fold: Fold
    value_cell: int
    mask: int
    base: int
    size: int
    asks: tuple[Ask, ...]

    @functools.cached_property
    def ask_windows(self) -> Int64Array:
        """int64, ``(asks,)``: the window of each ask."""
        return np.array([ask.window for ask in self.asks], np.int64)

    @functools.cached_property
    def ask_params(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """float64, ``(asks,)``: the parameter of each ask."""
        return np.array([ask.param for ask in self.asks], np.float64)


@dataclass(frozen=True)
class PlannedFeature:
    """A feature with the answers that its finish function takes.

    Attributes:
        finish: The kernel finish function.
        takes: For each partial of the feature: (index of the partial, index of the ask).
        column: Its first column in the answer matrix.
        width: How many columns it has.
        param: The aggregation's parameter.
        is_float: Whether its values are float64 (as 64-bit patterns), else int64, bool or time.
    """

    finish: Finish
    takes: tuple[tuple[int, int], ...]
    column: int
    width: int
    param: float
    is_float: bool


@dataclass(frozen=True)
class ValueCell:
    """A value that the kernel takes of each row, as 64 bits.

    Attributes:
        expression: What to evaluate.
        hashed: Whether the cell has the 64-bit hash of the value instead of its bits.
    """

    expression: Expression
    hashed: bool


@dataclass(frozen=True)
class Plan:
    """All that the kernel needs to know about a view.

    Attributes:
        view: The view's name.
        hash: The view's hash.
        hop_us: The hop.
        windows_us: int64, ``(windows,)``: the distinct windows, ascending.
        cells: The values taken of each row.
        masks: The masks; their bits are in words after the cells.
        partials: The partials.
        features: The features.
        columns: The feature columns, in the order of the answer matrix.
        tile_words: Words of a tile: its header and its partials.
        template: int64, ``(tile_words,)``: an empty tile.
    """

    view: str
    hash: str
    hop_us: int
    windows_us: Int64Array
    cells: tuple[ValueCell, ...]
    masks: tuple[Mask, ...]
    partials: tuple[PlannedPartial, ...]
    features: tuple[PlannedFeature, ...]
    columns: tuple[FeatureColumn, ...]
    tile_words: int
    template: Int64Array

    @property
    def mask_words(self) -> int:
        """Words of a row's mask bits."""
        return -(-len(self.masks) // MASKS_PER_WORD)

    @property
    def row_words(self) -> int:
        """Words of a prepared row: its cells and its mask bits."""
        return len(self.cells) + self.mask_words

    @functools.cached_property
    def window_hops(self) -> Int64Array:
        """int64, ``(windows,)``: each window as a number of hops."""
        return self.windows_us // self.hop_us

    @functools.cached_property
    def references(self) -> Int64Array:
        """int64, ``(references, 3)``: (kind, base, size) of partials that own arena blocks."""
        rows = [(p.fold.owns, p.base, p.size) for p in self.partials if p.fold.owns]
        return np.array(rows, np.int64).reshape(len(rows), 3)

    @functools.cached_property
    def empty_values(self) -> tuple[Int64Array, np.ndarray[Any, np.dtype[np.bool_]]]:
        """The empty value of each column: int64 ``(columns,)`` and null bool ``(columns,)``."""
        values = np.zeros(len(self.columns), np.int64)  # the bits of 0.0 are 0 too
        nulls = np.array([column.empty is None for column in self.columns], np.bool_)
        return values, nulls


def _key(spec: Any) -> str:
    return json.dumps(spec, sort_keys=True)


def _ask(aggregation: Aggregation, fold: Fold, windows: list[int]) -> Ask:
    """Return what an aggregation asks of one of its partials."""
    param = aggregation.param if fold.takes_param else 0.0
    return Ask(windows.index(aggregation.window_us), param)


def _plan_features(
    view: FeatureView, windows: list[int], planned: dict[str, PlannedPartial]
) -> tuple[PlannedFeature, ...]:
    order = list(planned)
    features = []
    column = 0
    for name, aggregation in view.features.items():
        if aggregation.finish not in FINISHES:
            raise DefinitionError(
                f"feature {view.name}.{name}: the kernel has no finish {aggregation.finish!r}; "
                "register it in features/kernel/folds/finish.py"
            )
        takes = []
        for partial in aggregation.partials(view.stream.schema, view.stream.event_time):
            key = _key(partial.spec())
            part = planned[key]
            ask = _ask(aggregation, part.fold, windows)
            takes.append((order.index(key), part.asks.index(ask)))
        features.append(
            PlannedFeature(
                finish=FINISHES[aggregation.finish],
                takes=tuple(takes),
                column=column,
                width=aggregation.width,
                param=aggregation.param,
                is_float=aggregation.result_dtype(view.stream.schema) == "float64",
            )
        )
        column += aggregation.width
    return tuple(features)


def make_plan(view: FeatureView) -> Plan:
    """Make the plan of a view.

    Raises:
        DefinitionError: An aggregation names a fold or finish function that the kernel lacks.
    """
    schema = view.stream.schema
    windows = sorted({a.window_us for a in view.features.values()})
    cells: dict[str, ValueCell] = {}
    masks: dict[str, Mask] = {}
    partials: dict[str, Partial] = {}
    asks: dict[str, set[Ask]] = {}
    for name, aggregation in view.features.items():
        for partial in aggregation.partials(schema, view.stream.event_time):
            if partial.fold not in FOLDS:
                raise DefinitionError(
                    f"feature {view.name}.{name}: the kernel has no fold {partial.fold!r}; "
                    "register it in features/kernel/folds/counts_and_extremes.py"
                )
            key = _key(partial.spec())
            partials.setdefault(key, partial)
            asks.setdefault(key, set()).add(_ask(aggregation, FOLDS[partial.fold], windows))
    planned: dict[str, PlannedPartial] = {}
    base = TILE_HEADER
    for key, partial in partials.items():
        fold = FOLDS[partial.fold]
        value_cell = -1
        if partial.value is not None:
            cell = ValueCell(partial.value, fold.hashed)
            cell_key = _key([partial.value.spec(), fold.hashed])
            cells.setdefault(cell_key, cell)
            value_cell = list(cells).index(cell_key)
        mask_key = _key(partial.mask.spec())
        masks.setdefault(mask_key, partial.mask)
        planned[key] = PlannedPartial(
            fold=fold,
            value_cell=value_cell,
            mask=list(masks).index(mask_key),
            base=base,
            size=partial.size,
            asks=tuple(sorted(asks[key], key=lambda ask: (ask.window, ask.param))),
        )
        base += len(fold.identity)
    template = np.zeros(base, np.int64)
    for part in planned.values():
        template[part.base : part.base + len(part.fold.identity)] = part.fold.identity
    return Plan(
        view=view.name,
        hash=view.hash,
        hop_us=view.hop_us,
        windows_us=np.array(windows, np.int64),
        cells=tuple(cells.values()),
        masks=tuple(masks.values()),
        partials=tuple(planned.values()),
        features=_plan_features(view, windows, planned),
        columns=view.columns,
        tile_words=base,
        template=template,
    )
