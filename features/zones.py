"""Time zones, columnar: UTC to local and back, from the pinned ``tzdata`` package alone.

The transitions of a zone are found once per year by asking `zoneinfo` and then searched with
numpy, so that no row costs a Python call. The system's zone files are never read: two machines
with the same ``tzdata`` version give the same local times.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import importlib.resources
import io
import re
import zoneinfo
from dataclasses import dataclass

import numpy as np

from tidemill.features.contract import HOUR, SECOND, BoolArray, Int64Array, moment_of
from tidemill.features.errors import DefinitionError, WrongType, found, shown

# A path in the package, and no part leads out of it; the longest part has 32 characters.
_NAME = re.compile(r"[A-Za-z0-9_+-]{1,64}(/[A-Za-z0-9_+-]{1,64}){0,3}")
_STEP_SECONDS = 86_400


@functools.cache
def tzdata_version() -> str:
    """Return the version of the pinned ``tzdata`` package (part of the feature-spec hash)."""
    return importlib.metadata.version("tzdata")


def zone(name: str) -> zoneinfo.ZoneInfo:
    """Load a zone from the ``tzdata`` package.

    Raises:
        DefinitionError: The package has no zone of that name.
    """
    if not isinstance(name, str):
        raise WrongType(f"a time zone is a text such as 'America/New_York'; {found(name)}")
    loaded = _load(name) if _NAME.fullmatch(name) else None
    if loaded is None:
        raise DefinitionError(
            f"time zone {shown(name)} is not in the tzdata package (version {tzdata_version()}); "
            "write an IANA name such as 'America/New_York'"
        )
    return loaded


@functools.lru_cache(maxsize=1_024)
def _load(name: str) -> zoneinfo.ZoneInfo | None:
    resource = importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    # The package's folder also holds lists and tables, which are files but no zones.
    content = resource.read_bytes() if resource.is_file() else b""
    if not content.startswith(b"TZif"):
        return None
    return zoneinfo.ZoneInfo.from_file(io.BytesIO(content), key=name)


@functools.lru_cache(maxsize=4096)
def _transitions(name: str, year: int) -> tuple[Int64Array, Int64Array]:
    """Return the UTC instants (us) of a year at which an offset begins, and the offsets (us)."""
    tz = zone(name)

    def offset_at(second: int) -> int:
        delta = moment_of(second * SECOND).astimezone(tz).utcoffset()
        assert delta is not None  # a ZoneInfo always knows its offset
        return delta // datetime.timedelta(microseconds=1)

    first = int(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp())
    if year < datetime.MAXYEAR:
        last = int(datetime.datetime(year + 1, 1, 1, tzinfo=datetime.UTC).timestamp())
    else:
        # Stop a day early: the local time of the last instants would not be a datetime.
        last = first + 364 * 86400
    if year == datetime.MINYEAR:
        first += 86400
    starts, offsets = [first], [offset_at(first)]
    low = first
    while low < last:
        high = min(low + _STEP_SECONDS, last - 1)
        if high <= low:
            break
        if offset_at(high) != offsets[-1]:
            before, after = low, high
            while after - before > 1:
                middle = (before + after) // 2
                if offset_at(middle) == offsets[-1]:
                    before = middle
                else:
                    after = middle
            starts.append(after)
            offsets.append(offset_at(after))
            low = after
        else:
            low = high
    return np.array(starts, np.int64) * SECOND, np.array(offsets, np.int64)


@functools.lru_cache(maxsize=256)
def _table(name: str, years: tuple[int, ...]) -> tuple[Int64Array, Int64Array]:
    """Return the transitions of some ascending years, one after the other."""
    parts = [_transitions(name, year) for year in years]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _years(times_us: Int64Array, margin: int) -> tuple[int, ...]:
    """Return the distinct years of some times and ``margin`` years around each, ascending."""
    ends = np.array([times_us.min(), times_us.max()]).astype("datetime64[us]")
    years = ends.astype("datetime64[Y]").astype(np.int64)
    if years[0] != years[1]:
        years = times_us.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64)
    around = np.unique(years)[:, None] + 1970 + np.arange(-margin, margin + 1)
    wanted = np.unique(np.clip(around, datetime.MINYEAR, datetime.MAXYEAR))
    return tuple(int(year) for year in wanted)


def utc_offsets(times_us: Int64Array, name: str) -> Int64Array:
    """Return the zone's offset from UTC at each UTC time.

    Args:
        times_us: int64, ``(rows,)``: UTC, microseconds, in the years 1 to 9999.
        name: An IANA zone name.

    Returns:
        int64, ``(rows,)``: offsets in microseconds; local = UTC + offset.
    """
    if len(times_us) == 0:
        return np.zeros(0, np.int64)
    starts, offsets = _table(name, _years(times_us, margin=0))
    found: Int64Array = offsets[np.maximum(np.searchsorted(starts, times_us, "right") - 1, 0)]
    return found


@dataclass(frozen=True, eq=False)
class Instants:
    """The UTC instants at which the clocks of a zone showed some local times.

    Attributes:
        first_us: int64, ``(rows,)``: the first instant, microseconds; undefined where there is
            none.
        last_us: int64, ``(rows,)``: the last instant: that of ``first_us`` unless clocks showed
            the time again after they were set back.
        exists: bool, ``(rows,)``: false for a time that clocks skipped.
    """

    first_us: Int64Array
    last_us: Int64Array
    exists: BoolArray

    @property
    def repeated(self) -> BoolArray:
        """bool, ``(rows,)``: the local time occurred more than once."""
        repeated: BoolArray = self.exists & (self.first_us != self.last_us)
        return repeated


def localize(local_us: Int64Array, name: str) -> Instants:
    """Turn naive local times of a zone into UTC.

    Args:
        local_us: int64, ``(rows,)``: local wall-clock times, microseconds since a naive epoch.
        name: An IANA zone name.
    """
    first = np.zeros(len(local_us), np.int64)
    last = np.zeros(len(local_us), np.int64)
    exists = np.zeros(len(local_us), np.bool_)
    if len(local_us) == 0:
        return Instants(first, last, exists)
    # An offset is less than 26 hours: the first candidate is the offset 26 hours before the local
    # time, read as UTC; the next ones follow in order.
    starts, offsets = _table(name, _years(local_us, margin=1))
    ends = np.concatenate([starts[1:], [np.iinfo(np.int64).max]])
    index = np.maximum(np.searchsorted(starts, local_us - 26 * HOUR, "right") - 1, 0)
    for _ in range(6):
        offset = offsets[index]
        utc = local_us - offset
        hit = (utc < ends[index]) & ((utc >= starts[index]) | (index == 0))
        first = np.where(hit & ~exists, utc, first)
        last = np.where(hit, utc, last)
        exists |= hit
        index = np.minimum(index + 1, len(starts) - 1)
    return Instants(first, last, exists)
