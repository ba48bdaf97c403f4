"""What the benchmarks of the online stores write and read: values of cards, in two shapes.

A **deal** is a number of cards and an instant: at that instant each of the cards gets a row in
every view of the shape. Instants ascend from deal to deal, so that every row wins over the one
that stands. A value follows from card, instant and column alone, so what a store must hold after
any deals is known without keeping them. No value is null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.workload import CARD, FIVE, HOP, PAYMENTS, REQUEST, START_US, numbered
from tidemill import FeatureView, Project, col, count, mean
from tidemill.features.contract import DAY, SECOND, Int64Array
from tidemill.features.definitions import INT64, Aggregation
from tidemill.features.feast_objects import EVENT_TIMESTAMP, REVISION, VALID_UNTIL, field_name
from tidemill.serving.publications import ENTITY_KEY, schema

VALID_UNTIL_US: Final = START_US + 3_650 * DAY
"""No row is overrun, however long a benchmark writes."""

_OVERS: Final = ("1h", "6h", "1d", "7d")
_TEN_FLOATS: Final[dict[str, Aggregation]] = {
    **{name: each for name, each in FIVE.items() if not name.startswith("count")},
    **{f"mean_{over}": mean(col("amount"), over=over) for over in ("6h", "7d")},
}
_EIGHT_MIXED: Final[dict[str, Aggregation]] = {
    **{f"count_{over}": count(over=over) for over in _OVERS},
    **{f"mean_{over}": mean(col("amount"), over=over) for over in _OVERS},
}


@dataclass(frozen=True, eq=False)
class Shape:
    """How many features of which types are written of a card.

    Attributes:
        name: What figures call it.
        views: Its views, all of cards.
    """

    name: str
    views: tuple[FeatureView, ...]

    def project(self, name: str) -> Project:
        """Return a project of these views; projects share no rows."""
        return Project(name, request=REQUEST, views=self.views)

    @cached_property
    def references(self) -> list[str]:
        """What Feast's SDK is asked for: every feature, ``view:feature``."""
        return [
            f"{view.name}:{field_name(column)}" for view in self.views for column in view.columns
        ]


def _view(name: str, features: dict[str, Aggregation]) -> FeatureView:
    return FeatureView(name, entity=CARD, stream=PAYMENTS, hop=HOP, features=features)


SHAPES: Final = (
    Shape("1 view x 10 floats", (_view("card", _TEN_FLOATS),)),
    Shape(
        "4 views x 8 mixed",
        tuple(
            _view(f"card_{place}", {f"{place}_{name}": each for name, each in _EIGHT_MIXED.items()})
            for place in ("home", "away", "shop", "web")
        ),
    ),
)
"""Ten Float64 features; four Int64 and four Float64 ones in each of four views. No two features
have the same name, so that one DataFrame can hold those of all views."""


@dataclass(frozen=True)
class Deal:
    """Cards that get new rows.

    Attributes:
        cards: Their numbers, each once, int64, ``(cards,)``.
        number: Which deal it is, from 1; its instant and the revision of its rows follow from it.
    """

    cards: Int64Array
    number: int

    @property
    def time_us(self) -> int:
        """When its rows begin to hold."""
        return time_us(self.number)


def time_us(deal: int) -> int:
    """Return the instant of a deal, in microseconds."""
    return START_US + deal * SECOND


@dataclass
class Deck:
    """Deals the cards round and round in one random order, and remembers each card's last deal.

    Attributes:
        cards: How many there are.
        dealt: How many deals there were.
        last_deal: The number of each card's last deal, 0 for none, int64, ``(cards,)``.
    """

    cards: int
    dealt: int = 0
    last_deal: Int64Array = field(init=False)
    _order: Int64Array = field(init=False)
    _next: int = 0

    def __post_init__(self) -> None:
        self.last_deal = np.zeros(self.cards, np.int64)
        self._order = np.random.default_rng(1).permutation(self.cards)

    def deal(self, size: int) -> Deal:
        """Deal the next cards; not more than there are."""
        cards = self._order.take(np.arange(self._next, self._next + size), mode="wrap")
        self._next = (self._next + size) % self.cards
        self.dealt += 1
        self.last_deal[cards] = self.dealt
        return Deal(cards, self.dealt)


def card_keys(cards: Int64Array) -> pa.Array:
    """Return the entity keys of cards: string, ``(cards,)``."""
    return numbered("card", cards)


def column_values(
    place: int, dtype: str, cards: Int64Array, deals: Int64Array | int
) -> npt.NDArray[Any]:
    """Return the values of one column.

    Args:
        place: Which of the shape's columns it is.
        dtype: ``int64`` (counts below a million) or ``float64`` (of all bits).
        cards: The cards, ``(cards,)``.
        deals: The deal of each, or one for all.

    Returns:
        int64 or float64, ``(cards,)``.
    """
    with np.errstate(over="ignore"):
        mixed = np.asarray(cards).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed += np.asarray(deals).astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        mixed += np.uint64(place * 0x8CB92BA72F3D8DD7 % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    if dtype == INT64:
        return (mixed % np.uint64(1_000_000)).astype(np.int64)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-43


def values_by_view(
    shape: Shape, cards: Int64Array, deals: Int64Array | int
) -> list[list[npt.NDArray[Any]]]:
    """Return the values of cards, column by column of each view; each ``(cards,)``."""
    out, place = [], 0
    for view in shape.views:
        columns = []
        for column in view.columns:
            columns.append(column_values(place, column.dtype, cards, deals))
            place += 1
        out.append(columns)
    return out


def publications(shape: Shape, deal: Deal) -> list[pa.RecordBatch]:
    """Return a deal as the kernel would publish it: a batch of each view, ``(cards,)``."""
    rows = len(deal.cards)
    head = {
        ENTITY_KEY: card_keys(deal.cards).cast(pa.binary()),
        EVENT_TIMESTAMP: np.full(rows, deal.time_us),
        "valid_until": np.full(rows, VALID_UNTIL_US),
        "revision": np.full(rows, deal.number),
    }
    return [
        pa.RecordBatch.from_arrays(
            [pa.array(column) for column in (*head.values(), *values)], schema=schema(view)
        )
        for view, values in zip(
            shape.views, values_by_view(shape, deal.cards, deal.number), strict=True
        )
    ]


def frames(shape: Shape, deal: Deal, *, technical: bool) -> list[Any]:
    """Return a deal as Feast takes it: a pandas DataFrame of each view.

    Args:
        shape: The shape.
        deal: The deal.
        technical: Whether the two fields stand in it that views of Tidemill's carry besides.
    """
    import pandas as pd

    rows = len(deal.cards)
    head: dict[str, Any] = {
        CARD.join_key: card_keys(deal.cards).to_pylist(),
        EVENT_TIMESTAMP: pd.to_datetime(np.full(rows, deal.time_us), unit="us", utc=True),
    }
    if technical:
        head[VALID_UNTIL] = np.full(rows, VALID_UNTIL_US)
        head[REVISION] = np.full(rows, deal.number)
    return [
        pd.DataFrame(head | dict(zip(map(field_name, view.columns), values, strict=True)))
        for view, values in zip(
            shape.views, values_by_view(shape, deal.cards, deal.number), strict=True
        )
    ]


def joined_frame(shape: Shape, deal: Deal) -> Any:
    """Return a deal as one pandas DataFrame with the features of all views."""
    import pandas as pd

    first, *others = frames(shape, deal, technical=False)
    features = [table.drop(columns=[CARD.join_key, EVENT_TIMESTAMP]) for table in others]
    return pd.concat([first, *features], axis=1)


def expected_values(
    shape: Shape, cards: Int64Array, deals: Int64Array
) -> dict[str, list[int | float]]:
    """Return what the values of cards must be, by ``view__feature``; each ``(cards,)``."""
    by_view = values_by_view(shape, cards, deals)
    return {
        column.name: values.tolist()
        for view, columns in zip(shape.views, by_view, strict=True)
        for column, values in zip(view.columns, columns, strict=True)
    }
