"""Requests: the moment a prediction is wanted, and the inputs that it brings itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.features.contract import format_duration, parse_duration
from tidemill.features.definitions.arguments import check_kind, check_name, prefix_errors, read_only
from tidemill.features.definitions.expressions import Expression
from tidemill.features.definitions.growing import Growing
from tidemill.features.definitions.reserved import (
    ANSWER_COLUMNS,
    LOG_COLUMNS,
    PREDICTION_COLUMNS,
    TRAINING_COLUMNS,
    check_not_reserved,
)
from tidemill.features.definitions.schema import (
    KEY_DTYPES,
    TIMESTAMP,
    Schema,
    check_column,
    check_schema,
)
from tidemill.features.definitions.streams import Arriving
from tidemill.features.definitions.views import Entity
from tidemill.features.errors import DefinitionError, WrongType, nearest, shown

REJECT: Final = "reject"
COUNT: Final = "count"
REPEATED: Final = (REJECT, COUNT)
"""What may become of a request whose id an earlier request has."""


@dataclass(frozen=True, eq=False)
class Request(Arriving, Growing):
    """The moment a prediction is wanted.

    Attributes:
        name: Its name (the request stream's).
        schema: Column to dtype.
        request_time: The timestamp column of the moment.
        request_id: The column of the unique id (string of at most 4,096 bytes, or int64).
        keys: Entity name to the request column that holds its key; join keys by default.
        inputs: Model inputs that the request itself brings: name to an expression over its
            columns, of any dtype but timestamp.
        out_of_orderness: As for streams.
        allowed_lateness: As for streams; a late request is answered as of the frontier.
        max_ahead: As for streams.
        repeated: What becomes of a request whose id an earlier request has: ``reject`` makes it a
            rejected record, ``count`` answers and counts it.
        repeated_within: Only a request less than so far from the earlier one, in request time, is
            repeated; None for any. A live stream then keeps no id for longer than twice that, and
            a request so far below the newest one is too late.
        optional: The columns that the request has got later: a row that lacks one has a null
            there, and its input is what the expression gives of a null.
        widened: Column to the narrower dtype that it had before: ``int64`` of one that is
            ``float64`` now. Whole numbers are taken for what they were.
    """

    row_name = "request"

    name: str
    schema: Schema
    request_time: str
    request_id: str
    keys: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Expression] = field(default_factory=dict)
    out_of_orderness: str = "0s"
    allowed_lateness: str = "0s"
    max_ahead: str = "1d"
    repeated: str = REJECT
    repeated_within: str | None = None
    optional: Sequence[str] = field(default=(), kw_only=True)
    widened: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        check_name(self.name, "request")
        what = f"request {self.name!r}"
        reserved = (*LOG_COLUMNS, *ANSWER_COLUMNS)
        object.__setattr__(self, "schema", check_schema(self.schema, what, reserved))
        check_column(self.schema, self.request_time, (TIMESTAMP,), f"{what}: request_time")
        check_column(self.schema, self.request_id, KEY_DTYPES, f"{what}: request_id")
        self.check_grown(what)
        keys = read_only(self.keys, f"{what}: keys", "a dict from entity to column")
        object.__setattr__(self, "keys", keys)
        for entity, column in self.keys.items():
            check_name(entity, f"{what}: keys: entity")
            key = f"{what}: request column for the key of entity {entity!r}"
            check_column(self.schema, column, KEY_DTYPES, key)
        inputs = read_only(self.inputs, f"{what}: inputs", "a dict from name to expression")
        object.__setattr__(self, "inputs", inputs)
        for name, expression in self.inputs.items():
            check_name(name, f"{what}: input")
            self._check_input(name, expression)
        self.check_bounds(what)
        check_kind(self.repeated, str, f"{what}: repeated", " or ".join(map(repr, REPEATED)))
        if self.repeated not in REPEATED:
            raise DefinitionError(
                f"{what}: repeated must be {' or '.join(map(repr, REPEATED))}, found "
                f"{shown(self.repeated)}; {nearest(self.repeated, REPEATED)}"
            )
        if self.repeated_within is not None:
            within_us = parse_duration(self.repeated_within, f"{what}: repeated_within")
            if within_us <= self.tolerance_us:
                raise DefinitionError(
                    f"{what}: repeated_within must be longer than "
                    f"{format_duration(self.tolerance_us)} (out_of_orderness + allowed_lateness), "
                    f"found {shown(self.repeated_within)}: requests so late are accepted, and "
                    "their ids are compared"
                )

    def _check_input(self, name: str, expression: Expression) -> None:
        what = f"request {self.name!r}: input"
        taken = dict.fromkeys((*TRAINING_COLUMNS, *PREDICTION_COLUMNS))
        check_not_reserved(name, taken, what, "every training row or prediction")
        check_kind(
            expression, Expression, f"{what} {name!r}", f"an expression such as col({name!r})"
        )
        with prefix_errors(f"{what} {name!r}"):
            dtype = expression.dtype(self.schema)
        if dtype == TIMESTAMP:
            raise WrongType(
                f"{what} {name!r} is a timestamp, which no model takes; take its "
                ".hour_of_day(zone), its .day_of_week(zone) or the difference of two times"
            )

    @property
    def time_column(self) -> str:
        """Name of the column that holds the request time."""
        return self.request_time

    @property
    def id_column(self) -> str:
        """Name of the column that holds the request id."""
        return self.request_id

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that no row may lack: time and id (a key may be null)."""
        return (self.request_time, self.request_id)

    def key_column(self, entity: Entity) -> str:
        """Return the request column that holds an entity's key."""
        return self.keys.get(entity.name, entity.join_key)

    @property
    def repeated_within_us(self) -> int | None:
        """How near two requests with one id are for the later one to be repeated; None for any."""
        return None if self.repeated_within is None else parse_duration(self.repeated_within)

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns by which two requests are one: all of them."""
        return tuple(self.schema)

    @property
    def read(self) -> frozenset[str]:
        """The columns that its inputs and keys read, beside time and id."""
        of_inputs = (expression.columns() for expression in self.inputs.values())
        return frozenset(self.keys.values()).union(*of_inputs)

    def _of_columns(self, columns: Schema) -> dict[str, Any]:
        """Return the attributes that it had with only some columns, without inputs."""
        keys = {entity: column for entity, column in self.keys.items() if column in columns}
        return {**super()._of_columns(columns), "inputs": {}, "keys": keys}

    def spec(self, read: Collection[str] | None = None) -> dict[str, Any]:
        """Return a canonical JSON value.

        Args:
            read: As for `EventStream.spec`; None for those of `Request.read`.
        """
        schema, grown = self._spec_of_columns(self.read if read is None else read)
        spec = {
            "request": self.name,
            "schema": schema,
            "request_time": self.request_time,
            "request_id": self.request_id,
            "keys": dict(sorted(self.keys.items())),
            "inputs": [[name, e.spec()] for name, e in self.inputs.items()],
            "out_of_orderness_us": self.out_of_orderness_us,
            "tolerance_us": self.tolerance_us,
            "max_ahead_us": self.max_ahead_us,
        }
        # Only where it is declared, so that the hashes of other requests stay as they were.
        declared = {} if self.repeated == REJECT else {"repeated": self.repeated}
        within_us = self.repeated_within_us
        return (
            spec
            | grown
            | declared
            | ({} if within_us is None else {"repeated_within_us": within_us})
        )
