"""Feature views: one entity, one event stream, a set of features, one hop."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.features import zones
from tidemill.features.contract import parse_duration
from tidemill.features.definitions.aggregations import Aggregation
from tidemill.features.definitions.arguments import (
    check_column_name,
    check_kind,
    check_name,
    prefix_errors,
    read_only,
)
from tidemill.features.definitions.canonical import SPEC_VERSION, hash_of
from tidemill.features.definitions.described import Described
from tidemill.features.definitions.reserved import PUBLICATION_COLUMNS, check_not_reserved
from tidemill.features.definitions.schema import KEY_DTYPES, STRING, check_column
from tidemill.features.definitions.streams import EventStream
from tidemill.features.errors import DefinitionError, DuplicateName, WrongType, shown

_PUBLICATION: Final = "every publication of the view"


@dataclass(frozen=True, eq=False)
class Entity(Described):
    """A kind of thing that features describe, such as a customer or an airport.

    Attributes:
        name: Its name.
        join_key: The column of its key in the store and, by default, in streams and requests; the
            entity's name by default.
        dtype: ``string`` or ``int64``.
        owner: Who is responsible for it; no part of the hash, like tags and description.
        tags: Texts by name, for Feast's registry.
        description: What it is, in words.
    """

    name: str
    join_key: str = ""
    dtype: str = STRING
    owner: str = field(default="", kw_only=True)
    tags: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    description: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        check_name(self.name, "entity")
        what = f"entity {self.name!r}"
        if type(self.join_key) is str and not self.join_key:
            object.__setattr__(self, "join_key", self.name)
        check_column_name(self.join_key, f"{what}: join_key")
        check_not_reserved(self.join_key, PUBLICATION_COLUMNS, f"{what}: join_key", _PUBLICATION)
        check_kind(self.dtype, str, f"{what}: dtype", "a text")
        if self.dtype not in KEY_DTYPES:
            raise WrongType(
                f"{what}: a key is {' or '.join(KEY_DTYPES)}, found {shown(self.dtype)}"
            )
        self.check_described(what)

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value."""
        return {"entity": self.name, "join_key": self.join_key, "dtype": self.dtype}


@dataclass(frozen=True, eq=False)
class FeatureColumn:
    """One value of a feature vector, as training, serving and the store see it.

    Attributes:
        name: ``view__feature``, or ``view__feature_i`` for the i-th newest value of last-k.
        view: The view's name.
        feature: The feature's name within the view.
        index: The place among the feature's values; always 0 except for last-k.
        dtype: ``int64``, ``float64``, ``bool`` or ``timestamp``.
        empty: The value for an entity without events: 0 or None.
        anchored: True where the published value is an anchor (see `TimeSinceLast`).
    """

    name: str
    view: str
    feature: str
    index: int
    dtype: str
    empty: int | None
    anchored: bool


@dataclass(frozen=True, eq=False)
class FeatureView(Described):
    """One entity, one event stream, a set of features, one hop.

    Attributes:
        name: Its name.
        entity: What its features describe.
        stream: Where its events come from.
        hop: The grid that window tails move on.
        features: Feature name to aggregation.
        key: The stream's column that holds the entity's key; the entity's join key by default. An
            event without it, a null, is no event of this view; other views count it.
        max_staleness: How far the published frontier may lag behind a reader's clock; past that a
            read gives ``OUTSIDE_MAX_AGE``.
        owner: Who is responsible for it; no part of the hash, like tags and description.
        tags: Texts by name, for Feast's registry.
        description: What it is, in words.
    """

    name: str
    entity: Entity
    stream: EventStream
    hop: str
    features: Mapping[str, Aggregation]
    key: str = ""
    max_staleness: str = "15m"
    owner: str = field(default="", kw_only=True)
    tags: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    description: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        check_name(self.name, "view")
        what = f"view {self.name!r}"
        check_kind(self.entity, Entity, f"{what}: entity", "an Entity")
        check_kind(self.stream, EventStream, f"{what}: stream", "an EventStream")
        if type(self.key) is str and not self.key:
            object.__setattr__(self, "key", self.entity.join_key)
        schema = self.stream.schema
        check_column(
            schema, self.key, (self.entity.dtype,), f"{what}: key of entity {self.entity.name!r}"
        )
        self.stream.check_read([self.key], f"{what}: key")
        if self.hop_us <= 0:
            raise DefinitionError(f"{what}: the hop must be longer than zero")
        parse_duration(self.max_staleness, f"{what}: max_staleness")
        self.check_described(what)
        example = "a dict such as {'orders_1d': count(over='1d')}"
        object.__setattr__(self, "features", read_only(self.features, f"{what}: features", example))
        if not self.features:
            raise DefinitionError(f"{what} has no features")
        for name, aggregation in self.features.items():
            check_name(name, f"{what}: feature")
            self._check_feature(name, aggregation)
        names = [column.name for column in self.columns]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise DuplicateName(
                f"{what}: {sorted(repeated)[0]!r} would be the name of two feature columns; "
                "rename the feature that clashes with an element of a last_k"
            )
        taken = (self.entity.join_key, *PUBLICATION_COLUMNS)
        for column in self.columns:
            check_not_reserved(
                column.name.removeprefix(f"{self.name}__"),
                taken,
                f"feature {self.name}.{column.feature}:",
                _PUBLICATION,
            )

    def _check_feature(self, name: str, aggregation: Aggregation) -> None:
        what = f"feature {self.name}.{name}"
        check_kind(aggregation, Aggregation, what, "an aggregation such as count(over='1d')")
        with prefix_errors(f"{what} on stream {self.stream.name!r}"):
            aggregation.check(self.stream.schema)
        partials = aggregation.partials(self.stream.schema, self.stream.event_time)
        self.stream.check_read(frozenset().union(*(one.columns for one in partials)), what)
        if aggregation.window_us % self.hop_us:
            raise DefinitionError(
                f"{what}: the window {aggregation.over} is not a multiple of the hop {self.hop}; "
                "choose a hop that divides every window of the view"
            )

    @property
    def hop_us(self) -> int:
        """The hop in microseconds."""
        return parse_duration(self.hop, f"view {self.name!r}: hop")

    @property
    def max_staleness_us(self) -> int:
        """The bound in microseconds."""
        return parse_duration(self.max_staleness)

    @property
    def longest_window_us(self) -> int:
        """The longest window of its features, in microseconds."""
        return max(aggregation.window_us for aggregation in self.features.values())

    @property
    def read(self) -> frozenset[str]:
        """The columns of the stream that it reads, beside time and id."""
        schema, time = self.stream.schema, self.stream.event_time
        partials = (one for a in self.features.values() for one in a.partials(schema, time))
        return frozenset([self.key]).union(*(one.columns for one in partials))

    @property
    def columns(self) -> tuple[FeatureColumn, ...]:
        """The view's feature columns, in order."""
        return _columns_of(self)

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value; features in their declared order."""
        return {
            "version": SPEC_VERSION,
            "tzdata": zones.tzdata_version(),
            "view": self.name,
            "entity": self.entity.spec(),
            "stream": self.stream.spec(self.read),
            "key": self.key,
            "hop_us": self.hop_us,
            "features": [[name, a.spec()] for name, a in self.features.items()],
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical form, 16 hexadecimal digits."""
        return hash_of(self)


# Cached, because every batch needs them; not stored in the definition, which is pickled.
@functools.lru_cache(maxsize=1_024)
def _columns_of(view: FeatureView) -> tuple[FeatureColumn, ...]:
    out = []
    for name, aggregation in view.features.items():
        for index in range(aggregation.width):
            suffix = f"_{index}" if aggregation.width > 1 else ""
            out.append(
                FeatureColumn(
                    name=f"{view.name}__{name}{suffix}",
                    view=view.name,
                    feature=name,
                    index=index,
                    dtype=aggregation.result_dtype(view.stream.schema),
                    empty=aggregation.empty,
                    anchored=aggregation.anchored,
                )
            )
    return tuple(out)
