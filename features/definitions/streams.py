"""Event streams: a named source of events, and how far out of order they may arrive."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.features.contract import parse_duration
from tidemill.features.definitions.arguments import check_name
from tidemill.features.definitions.described import Described
from tidemill.features.definitions.growing import Growing
from tidemill.features.definitions.schema import (
    KEY_DTYPES,
    TIMESTAMP,
    Schema,
    check_column,
    check_schema,
)
from tidemill.features.errors import DefinitionError


class Arriving:
    """How far out of order rows may arrive: the bounds that streams and requests share."""

    out_of_orderness: str
    allowed_lateness: str
    max_ahead: str

    @property
    def out_of_orderness_us(self) -> int:
        """The bound in microseconds."""
        return parse_duration(self.out_of_orderness)

    @property
    def lateness_us(self) -> int:
        """``allowed_lateness`` in microseconds: how far below its watermark a row is accepted."""
        return parse_duration(self.allowed_lateness)

    @property
    def tolerance_us(self) -> int:
        """``out_of_orderness + allowed_lateness`` in microseconds."""
        return self.out_of_orderness_us + self.lateness_us

    @property
    def max_ahead_us(self) -> int:
        """The bound in microseconds."""
        return parse_duration(self.max_ahead)

    def check_bounds(self, what: str) -> None:
        """Check that the three bounds are durations."""
        for name in ("out_of_orderness", "allowed_lateness", "max_ahead"):
            parse_duration(getattr(self, name), f"{what}: {name}")


@dataclass(frozen=True, eq=False)
class EventStream(Arriving, Growing, Described):
    """A named source of events.

    Attributes:
        name: Its name.
        schema: Column to dtype (``int64 float64 string bool timestamp``).
        event_time: The timestamp column that says when an event happened.
        event_id: The column of the event's id (string or int64).
        out_of_orderness: How far below the highest time of its partition an event is still
            expected; the partition's watermark is that far below the highest time.
        allowed_lateness: How far below the watermark an event is still accepted, as late.
        max_ahead: How far an event's time may be after the time of its receipt.
        transport: The columns that say how an event was delivered and not what it says, such as
            the time of its receipt. Events that are equal in all other columns are one event,
            delivered several times. No feature, key or label may read such a column.
        optional: The columns that the stream has got later: a row that lacks one has a null there.
            Without a value such a column is no part of what makes an event what it is, so that a
            stream goes on with the log and the states that it has when one is added.
        widened: Column to the narrower dtype that it had before: ``int64`` of one that is
            ``float64`` now. Whole numbers are taken for what they were.
        owner: Who is responsible for it; no part of the hash, like tags and description.
        tags: Texts by name, for Feast's registry.
        description: What it is, in words.
    """

    name: str
    schema: Schema
    event_time: str
    event_id: str
    out_of_orderness: str = "0s"
    allowed_lateness: str = "0s"
    max_ahead: str = "1d"
    transport: Sequence[str] = field(default=(), kw_only=True)
    optional: Sequence[str] = field(default=(), kw_only=True)
    widened: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    owner: str = field(default="", kw_only=True)
    tags: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    description: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        check_name(self.name, "stream")
        what = f"stream {self.name!r}"
        object.__setattr__(self, "schema", check_schema(self.schema, what))
        check_column(self.schema, self.event_time, (TIMESTAMP,), f"{what}: event_time")
        check_column(self.schema, self.event_id, KEY_DTYPES, f"{what}: event_id")
        says = "a transport column says how an event was delivered"
        self.check_columns("transport", says, what)
        self.check_grown(what)
        self.check_bounds(what)
        self.check_described(what)

    @property
    def time_column(self) -> str:
        """Name of the column that holds the event time."""
        return self.event_time

    @property
    def id_column(self) -> str:
        """Name of the column that holds the event id."""
        return self.event_id

    @property
    def required(self) -> tuple[str, ...]:
        """Columns in which no row may be null: time and id."""
        return (self.event_time, self.event_id)

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns by which two events are one: all but `transport`, as they are declared."""
        return tuple(column for column in self.schema if column not in self.transport)

    def check_read(self, columns: Iterable[str], what: str) -> None:
        """Check that none of the columns that a definition reads is of `transport`.

        Raises:
            DefinitionError: One is.
        """
        if read := sorted(set(columns).intersection(self.transport)):
            raise DefinitionError(
                f"{what} reads {read[0]!r}, which stream {self.name!r} declares as transport: it "
                "differs between deliveries of one event; declare what is measured as a column of "
                "its own"
            )

    def _of_columns(self, columns: Schema) -> dict[str, Any]:
        """Return the attributes that it had with only some columns."""
        transport = [column for column in self.transport if column in columns]
        return {**super()._of_columns(columns), "transport": transport}

    def spec(self, read: Collection[str] | None = None) -> dict[str, Any]:
        """Return a canonical JSON value.

        Args:
            read: The columns that a definition of the stream reads: what was added to others, or
                was widened in them, changes nothing for it. None for all.
        """
        schema, grown = self._spec_of_columns(self.schema.keys() if read is None else read)
        spec: dict[str, Any] = {
            "stream": self.name,
            "schema": schema,
            "event_time": self.event_time,
            "event_id": self.event_id,
            "transport": sorted(column for column in self.transport if column in schema),
            "out_of_orderness_us": self.out_of_orderness_us,
            "tolerance_us": self.tolerance_us,
            "max_ahead_us": self.max_ahead_us,
        }
        return spec | grown
