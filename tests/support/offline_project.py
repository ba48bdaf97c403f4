"""A project and a history for the tests of the offline store: many hops and windows, ten days.

Instants are where mistakes show: at events, a microsecond before and after them, on hop boundaries
and window ends, far from any event, and long after the last event of an entity.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

import tidemill
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Project,
    Request,
    col,
    count,
    distinct_count,
    last,
    last_k,
    mean,
    time_since_last,
)
from tidemill.features.contract import DAY, HOUR, MINUTE, SECOND, Int64Array
from tidemill.features.kernel import hashing

Row = dict[str, Any]

START = 1_699_999_200 * SECOND // DAY * DAY
"""A day's first instant, and where the history begins."""
END = START + 10 * DAY

PINGS = EventStream(
    "pings",
    schema={
        "at": "timestamp",
        "ping": "string",
        "car": "string",
        "site": "int64",
        "speed": "float64",
        "weight": "int64",
        "moving": "bool",
    },
    event_time="at",
    event_id="ping",
)
CAR = Entity("car")
SITE = Entity("site", dtype="int64")
BY_CAR = FeatureView(
    "by_car",
    CAR,
    PINGS,
    hop="5m",
    features={
        "pings_30m": count(over="30m"),
        "speed_1h": tidemill.sum(col("speed"), over="1h"),
        "last_speed_2h": last(col("speed"), over="2h", where=col("moving")),
        "idle_1d": time_since_last(over="1d"),
        "weights_6h": last_k(col("weight"), over="6h", k=3),
        "moving_2h": last(col("moving"), over="2h"),
        "moved_at_6h": tidemill.max(col("at"), over="6h", where=col("moving")),
        "times_30m": last_k(col("at"), over="30m", k=2),
    },
)
BY_SITE = FeatureView(
    "by_site",
    SITE,
    PINGS,
    hop="1h",
    features={
        "mean_speed_1d": mean(col("speed"), over="1d"),
        "cars_3h": distinct_count(col("car"), over="3h"),
        "weight_3h": tidemill.sum(col("weight"), over="3h"),
    },
)
BY_CAR_SLOWLY = FeatureView(
    "by_car_slowly",
    CAR,
    PINGS,
    hop="1d",
    features={
        "pings_3d": count(over="3d"),
        "fast_2d": count(over="2d", where=col("speed") > 50),
    },
)
BY_SITE_FINELY = FeatureView(
    "by_site_finely",
    SITE,
    PINGS,
    hop="7s",
    features={"pings_21s": count(over="21s"), "since_7m": time_since_last(over="7m")},
)
VIEWS = (BY_CAR, BY_SITE, BY_CAR_SLOWLY, BY_SITE_FINELY)
PROJECT = Project(
    "fleet",
    request=Request(
        "asks",
        schema={"at": "timestamp", "ask": "string", "car": "string", "site": "int64"},
        request_time="at",
        request_id="ask",
    ),
    views=VIEWS,
)

CARS = ("a", "b", "ç", "", "quiet", "once")
SITES = (1, 2, -(2**63), 2**63 - 1)


def history(seed: int, pings: int) -> list[Row]:
    """Pings over nine days: bursts, nulls, equal times, duplicates; some cars stop sending."""
    chance = random.Random(seed)
    grid = (5 * MINUTE, HOUR, DAY, 7 * SECOND)
    rows: list[Row] = []
    for number in range(pings):
        car = chance.choice(CARS[:4])
        time = START + chance.randrange(9 * DAY)
        kind = chance.random()
        if kind < 0.3:  # on a hop boundary, or a microsecond beside it
            hop = chance.choice(grid)
            time = time // hop * hop + chance.choice((-1, 0, 0, 1))
        elif kind < 0.5 and rows:  # at the same instant, or just after
            time = rows[-1]["at"] + chance.choice((0, 0, 1, 2))
        if number < 40:
            car, time = "quiet", START + chance.randrange(2 * DAY)
        if number == 40:
            car, time = "once", START + 3 * DAY
        rows.append(
            {
                "at": max(time, START),
                "ping": f"p{number}",
                "car": car,
                "site": chance.choice(SITES),
                "speed": None if chance.random() < 0.1 else chance.uniform(0, 100),
                # Beyond what a float64 holds.
                "weight": None if chance.random() < 0.1 else chance.randrange(2**53, 2**60),
                "moving": chance.choice((True, False, None)),
            }
        )
    return rows + [dict(chance.choice(rows)) for _ in range(pings // 20)]


def instants(rows: Sequence[Row], count: int, seed: int) -> pa.Table:
    """Entity rows: cars, sites (unknown ones and nulls too) and instants, ``(count,)``."""
    chance = np.random.default_rng(seed)
    times = np.array([row["at"] for row in rows])
    picked = chance.integers(0, len(rows), count)
    at = times[picked]
    hops = np.array([view.hop_us for view in VIEWS])[chance.integers(0, len(VIEWS), count)]
    windows = np.array([0, 21 * SECOND, 7 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, DAY])
    left = (at // hops + 1) * hops + windows[chance.integers(0, len(windows), count)]
    beside = chance.integers(-1, 2, count)
    kinds = chance.integers(0, 5, count)
    anywhere = chance.integers(START - DAY, END, count)
    boundary = anywhere // hops * hops + beside
    at = np.select(
        [kinds == 0, kinds == 1, kinds == 2, kinds == 3],
        [at + beside, left + beside, boundary, at + 1],
        anywhere,
    )
    cars = [rows[i]["car"] for i in picked]
    sites = [rows[i]["site"] for i in picked]
    others = chance.integers(0, 10, count)
    cars = [("nobody", None, *CARS)[chance.integers(0, 8)] if o == 0 else c
            for o, c in zip(others, cars, strict=True)]  # fmt: skip
    sites = [(99, None, *SITES)[chance.integers(0, 6)] if o == 1 else s
             for o, s in zip(others, sites, strict=True)]  # fmt: skip
    return pa.table(
        {
            "car": pa.array(cars, pa.string()),
            "site": pa.array(sites, pa.int64()),
            "event_timestamp": pa.array(np.minimum(at, END), pa.timestamp("us", tz="UTC")),
        }
    )


def words(column: pa.ChunkedArray | pa.Array) -> tuple[Int64Array, Int64Array]:
    """The bit patterns of a column, zero where it is null, and 1 for each null."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    missing = ~hashing.validity(array)
    return hashing.bits(array), missing.astype(np.int64)
