"""Definitions: streams, entities, views, requests, labels, and the project that ties them.

Everything here is frozen and is checked when it is defined, so that a mistake shows at import
time with the name of the thing and the mend. A project has a canonical form (`Project.spec`),
whose hash is stamped on state, bundles and predictions.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.features import zones
from tidemill.features.contract import parse_duration
from tidemill.features.definitions.aggregations import Aggregation
from tidemill.features.definitions.expressions import (
    DTYPES,
    INT64,
    STRING,
    TIMESTAMP,
    Expression,
    Schema,
)
from tidemill.features.errors import (
    DefinitionError,
    DuplicateName,
    UnknownColumn,
    WrongType,
    nearest,
)

SPEC_VERSION: Final = 1
"""Version of the canonical form and of the values' meaning; part of every hash."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_KEY_DTYPES: Final = (STRING, INT64)


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DefinitionError(
            f"{what} name {name!r} must be lower-case letters, digits and single underscores, "
            "starting with a letter"
        )


def _check_schema(schema: Mapping[str, str], what: str) -> None:
    if not schema:
        raise DefinitionError(f"{what}: the schema has no columns")
    for column, dtype in schema.items():
        if dtype not in DTYPES:
            raise WrongType(
                f"{what}: column {column!r} has dtype {dtype!r}; {nearest(str(dtype), DTYPES)} "
                f"(of {', '.join(DTYPES)})"
            )


def _check_column(schema: Schema, column: str, dtypes: Iterable[str], what: str) -> None:
    if column not in schema:
        raise UnknownColumn(f"{what} {column!r} is not in the schema; {nearest(column, schema)}")
    if schema[column] not in dtypes:
        raise WrongType(f"{what} {column!r} must be {' or '.join(dtypes)}, found {schema[column]}")


class _Arriving:
    """How far out of order the rows of a stream may arrive; for streams and requests."""

    out_of_orderness: str
    allowed_lateness: str
    max_ahead: str

    @property
    def out_of_orderness_us(self) -> int:
        """The bound in microseconds."""
        return parse_duration(self.out_of_orderness)

    @property
    def tolerance_us(self) -> int:
        """``out_of_orderness + allowed_lateness`` in microseconds."""
        return self.out_of_orderness_us + parse_duration(self.allowed_lateness)

    @property
    def max_ahead_us(self) -> int:
        """The bound in microseconds."""
        return parse_duration(self.max_ahead)

    def _check_bounds(self, what: str) -> None:
        for name in ("out_of_orderness", "allowed_lateness", "max_ahead"):
            parse_duration(getattr(self, name), f"{what}: {name}")


@dataclass(frozen=True, eq=False)
class EventStream(_Arriving):
    """A named source of events.

    Attributes:
        name: Its name.
        schema: Column to dtype (``int64 float64 string bool timestamp``).
        event_time: The timestamp column that says when an event happened.
        event_id: The column that names an event (string or int64).
        out_of_orderness: How far below the highest time seen in its partition an event is still
            expected: the partition's watermark trails by it.
        allowed_lateness: How much further below an event is still accepted (late), not rejected.
        max_ahead: How far past its receipt an event's time may lie.
    """

    name: str
    schema: Schema
    event_time: str
    event_id: str
    out_of_orderness: str = "0s"
    allowed_lateness: str = "0s"
    max_ahead: str = "1d"

    def __post_init__(self) -> None:
        what = f"stream {self.name!r}"
        _check_name(self.name, "stream")
        _check_schema(self.schema, what)
        _check_column(self.schema, self.event_time, (TIMESTAMP,), f"{what}: event_time")
        _check_column(self.schema, self.event_id, _KEY_DTYPES, f"{what}: event_id")
        self._check_bounds(what)

    @property
    def time_column(self) -> str:
        """The column of its time."""
        return self.event_time

    @property
    def id_column(self) -> str:
        """The column of its id."""
        return self.event_id

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that no row may lack: time and id (views add their keys)."""
        return (self.event_time, self.event_id)

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value."""
        return {
            "stream": self.name,
            "schema": dict(sorted(self.schema.items())),
            "event_time": self.event_time,
            "event_id": self.event_id,
            "out_of_orderness_us": self.out_of_orderness_us,
            "tolerance_us": self.tolerance_us,
            "max_ahead_us": self.max_ahead_us,
        }


@dataclass(frozen=True, eq=False)
class Entity:
    """What features describe.

    Attributes:
        name: Its name.
        join_key: The column that carries its key in the store and, unless they say otherwise, in
            streams and requests; its name by default.
        dtype: ``string`` or ``int64``.
    """

    name: str
    join_key: str = ""
    dtype: str = STRING

    def __post_init__(self) -> None:
        _check_name(self.name, "entity")
        if not self.join_key:
            object.__setattr__(self, "join_key", self.name)
        if self.dtype not in _KEY_DTYPES:
            raise WrongType(
                f"entity {self.name!r}: a key is {' or '.join(_KEY_DTYPES)}, found {self.dtype!r}"
            )

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
        index: Which of the feature's values; 0 but for last-k.
        dtype: ``int64`` or ``float64``.
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
class FeatureView:
    """One entity, one event stream, a set of features, one hop.

    Attributes:
        name: Its name.
        entity: What its features describe.
        stream: Where its events come from.
        hop: The grid that window tails move on.
        features: Feature name to aggregation.
        key: The stream's column that holds the entity's key; the entity's join key by default.
        max_staleness: How far the published frontier may lag behind a reader's clock before the
            reader is told ``OUTSIDE_MAX_AGE``.
    """

    name: str
    entity: Entity
    stream: EventStream
    hop: str
    features: Mapping[str, Aggregation]
    key: str = ""
    max_staleness: str = "15m"

    def __post_init__(self) -> None:
        what = f"view {self.name!r}"
        _check_name(self.name, "view")
        if not self.key:
            object.__setattr__(self, "key", self.entity.join_key)
        schema = self.stream.schema
        _check_column(
            schema, self.key, (self.entity.dtype,), f"{what}: key of entity {self.entity.name!r}"
        )
        if self.hop_us <= 0:
            raise DefinitionError(f"{what}: the hop must be longer than zero")
        parse_duration(self.max_staleness, f"{what}: max_staleness")
        if not self.features:
            raise DefinitionError(f"{what} has no features")
        for name, aggregation in self.features.items():
            _check_name(name, f"{what}: feature")
            self._check_feature(name, aggregation)
        names = [column.name for column in self.columns]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise DuplicateName(
                f"{what}: {sorted(repeated)[0]!r} would be the name of two feature columns; "
                "rename the feature that clashes with an element of a last_k"
            )

    def _check_feature(self, name: str, aggregation: Aggregation) -> None:
        what = f"feature {self.name}.{name}"
        if not isinstance(aggregation, Aggregation):
            raise WrongType(
                f"{what} must be an aggregation such as count(over='1d'), "
                f"found {type(aggregation).__name__}"
            )
        try:
            aggregation.check(self.stream.schema)
        except DefinitionError as error:
            raise type(error)(f"{what} on stream {self.stream.name!r}: {error}") from None
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
    def columns(self) -> tuple[FeatureColumn, ...]:
        """The view's feature columns, in order."""
        out = []
        for name, aggregation in self.features.items():
            for index in range(aggregation.width):
                suffix = f"_{index}" if aggregation.width > 1 else ""
                out.append(
                    FeatureColumn(
                        name=f"{self.name}__{name}{suffix}",
                        view=self.name,
                        feature=name,
                        index=index,
                        dtype=aggregation.result_dtype(self.stream.schema),
                        empty=aggregation.empty,
                        anchored=aggregation.anchored,
                    )
                )
        return tuple(out)

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value; features in their declared order."""
        return {
            "version": SPEC_VERSION,
            "tzdata": zones.tzdata_version(),
            "view": self.name,
            "entity": self.entity.spec(),
            "stream": self.stream.spec(),
            "key": self.key,
            "hop_us": self.hop_us,
            "features": [[name, a.spec()] for name, a in self.features.items()],
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical form, 16 hexadecimal digits."""
        return _hash_of(self)


@dataclass(frozen=True, eq=False)
class Request(_Arriving):
    """The moment a prediction is wanted.

    Attributes:
        name: Its name (the request stream's).
        schema: Column to dtype.
        request_time: The timestamp column that says when.
        request_id: The column that names a request (string or int64), unique.
        keys: Entity name to the request column that holds its key; join keys by default.
        inputs: Model inputs that the request itself brings: name to an expression over its
            columns.
        out_of_orderness: As for streams.
        allowed_lateness: As for streams; a late request is answered as of the frontier.
        max_ahead: As for streams.
    """

    name: str
    schema: Schema
    request_time: str
    request_id: str
    keys: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Expression] = field(default_factory=dict)
    out_of_orderness: str = "0s"
    allowed_lateness: str = "0s"
    max_ahead: str = "1d"

    def __post_init__(self) -> None:
        what = f"request {self.name!r}"
        _check_name(self.name, "request")
        _check_schema(self.schema, what)
        _check_column(self.schema, self.request_time, (TIMESTAMP,), f"{what}: request_time")
        _check_column(self.schema, self.request_id, _KEY_DTYPES, f"{what}: request_id")
        for name, expression in self.inputs.items():
            _check_name(name, f"{what}: input")
            if not isinstance(expression, Expression):
                raise WrongType(
                    f"{what}: input {name!r} must be an expression such as col({name!r}), "
                    f"found {type(expression).__name__}"
                )
            try:
                expression.dtype(self.schema)
            except DefinitionError as error:
                raise type(error)(f"{what}: input {name!r}: {error}") from None
        self._check_bounds(what)

    @property
    def time_column(self) -> str:
        """The column of its time."""
        return self.request_time

    @property
    def id_column(self) -> str:
        """The column of its id."""
        return self.request_id

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that no row may lack: time and id (a key may be null)."""
        return (self.request_time, self.request_id)

    def key_column(self, entity: Entity) -> str:
        """Return the request column that holds an entity's key."""
        return self.keys.get(entity.name, entity.join_key)

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value."""
        return {
            "request": self.name,
            "schema": dict(sorted(self.schema.items())),
            "request_time": self.request_time,
            "request_id": self.request_id,
            "keys": dict(sorted(self.keys.items())),
            "inputs": [[name, e.spec()] for name, e in self.inputs.items()],
            "out_of_orderness_us": self.out_of_orderness_us,
            "tolerance_us": self.tolerance_us,
            "max_ahead_us": self.max_ahead_us,
        }


@dataclass(frozen=True, eq=False)
class Label:
    """What a model learns to predict: a value of a stream that arrives after the request.

    Attributes:
        name: Its name.
        stream: Where it arrives.
        value: What of the event it is; a row where it is null is no label.
        on: Request column to stream column: both must be equal.
        horizon: ``request_time < label time <= request_time + horizon``; none by then is
            unlabelled, not negative.
    """

    name: str
    stream: EventStream
    value: Expression
    on: Mapping[str, str]
    horizon: str

    def __post_init__(self) -> None:
        what = f"label {self.name!r}"
        _check_name(self.name, "label")
        self.dtype  # noqa: B018 - infers, and so checks, the expression
        if not self.on:
            raise DefinitionError(f"{what}: 'on' must join at least one column")
        for column in self.on.values():
            _check_column(self.stream.schema, column, _KEY_DTYPES, f"{what}: join column")
        if self.horizon_us <= 0:
            raise DefinitionError(f"{what}: the horizon must be longer than zero")

    @property
    def dtype(self) -> str:
        """The dtype of the label's value."""
        try:
            return self.value.dtype(self.stream.schema)
        except DefinitionError as error:
            raise type(error)(
                f"label {self.name!r} on stream {self.stream.name!r}: {error}"
            ) from None

    @property
    def horizon_us(self) -> int:
        """The horizon in microseconds."""
        return parse_duration(self.horizon, f"label {self.name!r}: horizon")

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value."""
        return {
            "label": self.name,
            "stream": self.stream.spec(),
            "value": self.value.spec(),
            "on": dict(sorted(self.on.items())),
            "horizon_us": self.horizon_us,
        }


@dataclass(frozen=True, eq=False)
class Project:
    """Everything a user defines: what is asked, with which features, for which model.

    Attributes:
        name: Its name; the Feast project too.
        request: The request.
        views: The feature views, in the order of the feature vector.
        label: What to learn; None for a project that only serves features.
        preprocessing_fn: A tf.Transform ``preprocessing_fn`` over the model inputs.
        model: A function that returns a compiled Keras model for the transformed inputs.
    """

    name: str
    request: Request
    views: tuple[FeatureView, ...] | list[FeatureView]
    label: Label | None = None
    preprocessing_fn: Callable[..., Any] | None = None
    model: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        _check_name(self.name, "project")
        object.__setattr__(self, "views", tuple(self.views))
        what = f"project {self.name!r}"
        if not self.views:
            raise DefinitionError(f"{what} has no feature views")
        _unique((view.name for view in self.views), f"{what}: view")
        _same_by_name([view.entity for view in self.views], f"{what}: entity")
        _same_by_name([*self.streams], f"{what}: stream")
        if self.request.name in {stream.name for stream in self.streams}:
            raise DuplicateName(f"{what}: {self.request.name!r} names a stream and the request")
        entities = {view.entity.name: view.entity for view in self.views}
        for name in self.request.keys:
            if name not in entities:
                raise UnknownColumn(
                    f"{what}: request.keys names entity {name!r}; {nearest(name, entities)}"
                )
        for entity in entities.values():
            _check_column(
                self.request.schema,
                self.request.key_column(entity),
                (entity.dtype,),
                f"{what}: request column for the key of entity {entity.name!r}",
            )
        if self.label is not None:
            for mine, theirs in self.label.on.items():
                dtype = self.label.stream.schema[theirs]
                _check_column(self.request.schema, mine, (dtype,), f"{what}: label join column")
        names = [*self.request.inputs, *(column.name for column in self.columns)]
        _unique(names, f"{what}: model input")

    @property
    def streams(self) -> tuple[EventStream, ...]:
        """The event streams, each once: the views' in order, then the label's."""
        out: dict[int, EventStream] = {id(view.stream): view.stream for view in self.views}
        if self.label is not None:
            out.setdefault(id(self.label.stream), self.label.stream)
        return tuple(out.values())

    @property
    def columns(self) -> tuple[FeatureColumn, ...]:
        """All feature columns, view by view."""
        return tuple(column for view in self.views for column in view.columns)

    def view(self, name: str) -> FeatureView:
        """Return a view by name.

        Raises:
            UnknownColumn: There is no such view.
        """
        views = {view.name: view for view in self.views}
        if name not in views:
            raise UnknownColumn(f"no feature view {name!r}; {nearest(name, views)}")
        return views[name]

    def stream(self, name: str) -> EventStream:
        """Return a stream by name.

        Raises:
            UnknownColumn: There is no such stream.
        """
        streams = {stream.name: stream for stream in self.streams}
        if name not in streams:
            raise UnknownColumn(f"no event stream {name!r}; {nearest(name, streams)}")
        return streams[name]

    def required_columns(self, stream: EventStream) -> tuple[str, ...]:
        """Columns of a stream that no row may lack: time, id and the keys of its views."""
        keys = [view.key for view in self.views if view.stream is stream]
        return tuple(dict.fromkeys([*stream.required, *keys]))

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value of what determines a feature vector and its label."""
        return {
            "version": SPEC_VERSION,
            "tzdata": zones.tzdata_version(),
            "project": self.name,
            "request": self.request.spec(),
            "views": [view.spec() for view in self.views],
            "label": None if self.label is None else self.label.spec(),
        }

    @property
    def hash(self) -> str:
        """The feature-spec hash: SHA-256 of the canonical form, 16 hexadecimal digits."""
        return _hash_of(self)


# Asked for with every batch, and the canonical form of a view takes a millisecond. Not kept in the
# definition: it would travel with it to a worker that may have another edition of the zones.
@functools.lru_cache(maxsize=1_024)
def _hash_of(definition: FeatureView | Project) -> str:
    return spec_hash(definition.spec())


def spec_hash(spec: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a canonical JSON value."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateName(f"{what} {name!r} is defined twice; rename one")
        seen.add(name)


def _same_by_name(things: Iterable[Entity] | Iterable[EventStream], what: str) -> None:
    seen: dict[str, Entity | EventStream] = {}
    for thing in things:
        other = seen.setdefault(thing.name, thing)
        if other is not thing and (isinstance(thing, EventStream) or other.spec() != thing.spec()):
            raise DuplicateName(f"{what} {thing.name!r} is defined twice; share one object")
