"""Labels: what a model learns to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.features.contract import parse_duration
from tidemill.features.definitions.arguments import check_name
from tidemill.features.definitions.expressions import Expression
from tidemill.features.definitions.schema import KEY_DTYPES, check_column
from tidemill.features.definitions.streams import EventStream
from tidemill.features.errors import DefinitionError


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
        check_name(self.name, "label")
        self.dtype  # noqa: B018 - infers, and so checks, the expression
        if not self.on:
            raise DefinitionError(f"{what}: 'on' must join at least one column")
        for column in self.on.values():
            check_column(self.stream.schema, column, KEY_DTYPES, f"{what}: join column")
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
