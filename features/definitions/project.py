"""The project: request, views, label and the user's two functions, tied together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tidemill.features import zones
from tidemill.features.definitions.arguments import check_kind, check_name, check_unique
from tidemill.features.definitions.canonical import SPEC_VERSION, hash_of
from tidemill.features.definitions.described import Described
from tidemill.features.definitions.labels import Label
from tidemill.features.definitions.requests import Request
from tidemill.features.definitions.schema import TIMESTAMP, check_column
from tidemill.features.definitions.streams import EventStream
from tidemill.features.definitions.views import Entity, FeatureColumn, FeatureView
from tidemill.features.errors import (
    DefinitionError,
    DuplicateName,
    UnknownColumn,
    WrongType,
    found,
    nearest,
)

Named = TypeVar("Named", EventStream, FeatureView)


@dataclass(frozen=True, eq=False)
class Project(Described):
    """Everything a user defines: what is asked, with which features, for which model.

    Attributes:
        name: Its name; the Feast project too.
        request: The request.
        views: The feature views, in the order of the feature vector.
        label: What to learn; None for a project that only serves features.
        preprocessing_fn: A tf.Transform ``preprocessing_fn`` over the model inputs.
        model: A function that returns a compiled Keras model for the transformed inputs; None for a
            project whose stream serves features without scores.
        owner: Who is responsible for it; no part of the hash, like tags and description.
        tags: Texts by name, for Feast's registry.
        description: What it is, in words.
    """

    name: str
    request: Request
    views: tuple[FeatureView, ...] | list[FeatureView]
    label: Label | None = None
    preprocessing_fn: Callable[..., Any] | None = None
    model: Callable[..., Any] | None = None
    owner: str = field(default="", kw_only=True)
    tags: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    description: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        check_name(self.name, "project")
        what = f"project {self.name!r}"
        self.check_described(what)
        check_kind(self.request, Request, f"{what}: request", "a Request")
        check_kind(self.views, list | tuple, f"{what}: views", "a list of feature views")
        object.__setattr__(self, "views", tuple(self.views))
        for index, view in enumerate(self.views):
            check_kind(view, FeatureView, f"{what}: views[{index}]", "a FeatureView")
        check_kind(self.label, Label | None, f"{what}: label", "a Label, or None")
        for name in ("preprocessing_fn", "model"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise WrongType(f"{what}: {name} must be a function; {found(getattr(self, name))}")
        if not self.views:
            raise DefinitionError(f"{what} has no feature views")
        check_unique((view.name for view in self.views), f"{what}: view")
        _same_by_name([view.entity for view in self.views], f"{what}: entity")
        _same_by_name(self.streams, f"{what}: stream")
        if self.request.name in {stream.name for stream in self.streams}:
            raise DuplicateName(f"{what}: {self.request.name!r} names a stream and the request")
        entities = {view.entity.name: view.entity for view in self.views}
        for name in self.request.keys:
            if name not in entities:
                raise UnknownColumn(
                    f"{what}: request.keys names entity {name!r}; {nearest(name, entities)}"
                )
        for entity in entities.values():
            check_column(
                self.request.schema,
                self.request.key_column(entity),
                (entity.dtype,),
                f"{what}: request column for the key of entity {entity.name!r}",
            )
        if self.label is not None:
            for mine, theirs in self.label.on.items():
                dtype = self.label.stream.schema[theirs]
                check_column(self.request.schema, mine, (dtype,), f"{what}: label join column")
        names = [*self.request.inputs, *(column.name for column in self.columns)]
        check_unique(names, f"{what}: model input")
        if self.model is not None:
            self._check_model_takes_features(what)

    def _check_model_takes_features(self, what: str) -> None:
        for column in self.columns:
            if column.dtype == TIMESTAMP:
                raise WrongType(
                    f"{what}: feature {column.view}.{column.feature} is a timestamp, which no "
                    "model takes; take its hour_of_day or day_of_week, the time between it and "
                    "another time of the row (col('a') - col('b')), or time_since_last. A project "
                    "without a model serves timestamps as they are"
                )

    @property
    def streams(self) -> tuple[EventStream, ...]:
        """The event streams, each once: the views' in order, then the label's."""
        labels = [] if self.label is None else [self.label.stream]
        return tuple(dict.fromkeys([*(view.stream for view in self.views), *labels]))

    @property
    def columns(self) -> tuple[FeatureColumn, ...]:
        """All feature columns, view by view."""
        return _columns_of(self)

    def view(self, name: str) -> FeatureView:
        """Return a view by name.

        Raises:
            UnknownColumn: There is no such view.
        """
        return _named(name, self.views, "feature view")

    def stream(self, name: str) -> EventStream:
        """Return a stream by name.

        Raises:
            UnknownColumn: There is no such stream.
        """
        return _named(name, self.streams, "event stream")

    def definition(self, source: str) -> EventStream | Request:
        """Return a stream, or the request, by name.

        Raises:
            UnknownColumn: Nothing has the name.
        """
        return self.request if source == self.request.name else self.stream(source)

    def views_of(self, stream: str) -> tuple[FeatureView, ...]:
        """Return the views of a stream, in order."""
        return tuple(view for view in self.views if view.stream.name == stream)

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
        return hash_of(self)


def _named(name: str, things: Iterable[Named], what: str) -> Named:
    by_name = {thing.name: thing for thing in things}
    if name not in by_name:
        raise UnknownColumn(f"no {what} {name!r}; {nearest(name, by_name)}")
    return by_name[name]


def _same_by_name(things: Iterable[Entity] | Iterable[EventStream], what: str) -> None:
    seen: dict[str, Entity | EventStream] = {}
    for thing in things:
        other = seen.setdefault(thing.name, thing)
        differs = (other.spec(), other.described()) != (thing.spec(), thing.described())
        if other is not thing and (isinstance(thing, EventStream) or differs):
            raise DuplicateName(f"{what} {thing.name!r} is defined twice; share one object")


# Cached as those of a view are, for the same reasons.
@functools.lru_cache(maxsize=1_024)
def _columns_of(project: Project) -> tuple[FeatureColumn, ...]:
    return tuple(column for view in project.views for column in view.columns)
