"""Labels: what a model learns to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.features.contract import parse_duration
from tidemill.features.definitions.arguments import (
    check_column_name,
    check_kind,
    check_name,
    prefix_errors,
    read_only,
)
from tidemill.features.definitions.expressions import Expression
from tidemill.features.definitions.schema import BOOL, KEY_DTYPES, check_column
from tidemill.features.definitions.streams import EventStream
from tidemill.features.errors import DefinitionError, WrongType


@dataclass(frozen=True, eq=False)
class Label:
    """What a model learns to predict: a value of a stream that arrives after the request.

    Attributes:
        name: Its name.
        stream: The stream of the events that carry the label.
        value: The label's value, a bool expression over an event; a null is no label.
        on: Request column to the stream column that must equal it.
        horizon: ``request_time < label time <= request_time + horizon``; a request without a
            label in that time is unlabelled, not negative.
        recurring: Whether a key has several requests and events in turn, such as a customer's
            orders: then the first event after a request is its label, and those before it are
            ordinary history. Otherwise a key is that of one request, and an event at or before it
            is a leak.
    """

    name: str
    stream: EventStream
    value: Expression
    on: Mapping[str, str]
    horizon: str
    recurring: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "label")
        what = f"label {self.name!r}"
        check_kind(self.stream, EventStream, f"{what}: stream", "an EventStream")
        check_kind(
            self.value, Expression, f"{what}: value", "an expression such as col('delay') > 15"
        )
        where = f"{what} on stream {self.stream.name!r}: value"
        with prefix_errors(where):
            dtype = self.value.dtype(self.stream.schema)
        if dtype != BOOL:
            raise WrongType(
                f"{where} must be bool, found {dtype}; "
                "write what makes it true, such as col('delay') > 15"
            )
        on = read_only(self.on, f"{what}: on", "a dict from request column to stream column")
        object.__setattr__(self, "on", on)
        if not self.on:
            raise DefinitionError(f"{what}: 'on' must join at least one column")
        for asked, column in self.on.items():
            check_column_name(asked, f"{what}: on: the request's column")
            check_column(self.stream.schema, column, KEY_DTYPES, f"{what}: join column")
        self.stream.check_read(self.columns, what)
        check_kind(self.recurring, bool, f"{what}: recurring", "True or False")
        if self.horizon_us <= 0:
            raise DefinitionError(f"{what}: the horizon must be longer than zero")

    @property
    def horizon_us(self) -> int:
        """The horizon in microseconds."""
        return parse_duration(self.horizon, f"label {self.name!r}: horizon")

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the stream that it reads, beside time and id."""
        return frozenset([*self.value.columns(), *self.on.values()])

    def spec(self) -> dict[str, Any]:
        """Return a canonical JSON value."""
        spec = {
            "label": self.name,
            "stream": self.stream.spec(self.columns),
            "value": self.value.spec(),
            "on": dict(sorted(self.on.items())),
            "horizon_us": self.horizon_us,
        }
        # Only where it is declared, so that the hashes of other labels stay as they were.
        return spec | ({"recurring": True} if self.recurring else {})
