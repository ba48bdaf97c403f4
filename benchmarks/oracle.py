"""The oracle of `verify` on one hot key: all instants in one pass beside one window at a time.

The oracle is plain Python and shares no code with the kernel. A pass over a key's events costs what
grows with the events and with the instants, and not with their product; one window at a time costs
the window. Both give the same bits, which is checked before anything is timed, and so does the
kernel.
"""

from __future__ import annotations

import random
from typing import Final

import numpy as np
import pyarrow as pa

import tidemill
from benchmarks.measure import AnswersDiffer, Effort, Figure, Side, alternate, spread
from tidemill import Entity, EventStream, FeatureView, col, count, mean, std
from tidemill.features.contract import DAY, HOUR, Int64Array
from tidemill.features.definitions import ARROW_TYPES
from tidemill.features.oracle.values import Oracle
from tidemill.pipelines.history.point_in_time import columns_of, values_at

EVENTS: Final = 75_000
INSTANTS: Final = 10_000
WINDOWS: Final = 3
"""How many windows are computed one at a time; each holds nearly all events."""

STREAM: Final = EventStream(
    "taps",
    schema={"at": "timestamp", "id": "int64", "card": "string", "amount": "float64"},
    event_time="at",
    event_id="id",
)
VIEW: Final = FeatureView(
    "card",
    Entity("card"),
    STREAM,
    hop="1h",
    features={
        "taps": count(over="30d"),
        "spent": tidemill.sum(col("amount"), over="30d"),
        "mean": mean(col("amount"), over="30d"),
        "spread": std(col("amount"), over="30d"),
        "most": tidemill.max(col("amount"), over="30d"),
    },
)


def hot_key(events: int) -> list[dict[str, object]]:
    """Return events of one key over 30 days, as the oracle takes them."""
    chance = random.Random(7)
    return [
        {
            "at": chance.randrange(30 * DAY),
            "id": number,
            "card": "hot",
            "amount": round(chance.expovariate(0.01), 2) if number % 10 else None,
        }
        for number in range(events)
    ]


def _check(rows: list[dict[str, object]], instants: list[int]) -> int:
    """Compare one pass with single windows and with the kernel; return the number of values."""
    oracle = Oracle(VIEW, rows)
    found = oracle.values_at("hot", instants)
    for place in (0, len(instants) // 2, len(instants) - 1)[:WINDOWS]:
        if found[place] != oracle.values("hot", instants[place]):
            raise AnswersDiffer(f"one pass and one window differ as of {instants[place]}")
    kinds = [(name, ARROW_TYPES[dtype]) for name, dtype in STREAM.schema.items()]
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds))
    times: Int64Array = np.array(instants, np.int64)
    columns = columns_of(VIEW, *values_at(VIEW, table, pa.array(["hot"] * len(times)), times))
    for name, column in columns.items():
        if column.to_pylist() != [values[name] for values in found]:
            raise AnswersDiffer(f"the oracle and the kernel differ in {name}")
    return len(instants) * len(columns)


def run(quick: bool, effort: Effort) -> list[Figure]:
    """Run the benchmark."""
    events, asked = (1_500, 50) if quick else (EVENTS, INSTANTS)
    rows, chance = hot_key(events), random.Random(8)
    instants = [chance.randrange(HOUR, 31 * DAY) for _ in range(asked)]
    late = [30 * DAY - number * HOUR for number in range(WINDOWS)]

    def one_pass(some: list[dict[str, object]], at: list[int]) -> Side:
        def work() -> int:
            Oracle(VIEW, some).values_at("hot", at)
            return 1

        return Side(work)

    def windows() -> int:
        oracle = Oracle(VIEW, rows)
        for instant in late:
            oracle.values("hot", instant)
        return len(late)

    few = instants[: len(instants) // 10]
    third = rows[: events // 3]
    out = [Figure("values equal to single windows and to the kernel", _check(rows, few), "values")]
    sides = {
        "all": one_pass(rows, instants),
        "few instants": one_pass(rows, few),
        "a third of the events": one_pass(third, instants),
        "windows": Side(windows),
    }
    runs = alternate(sides, effort)
    seconds = {name: [1 / run.per_cpu_s for run in of] for name, of in runs.items()}
    label = f"{events:,} events of a key, {len(VIEW.features)} features"
    by_events = [a / b for a, b in zip(*(seconds[n] for n in list(sides)[::2]), strict=True)]
    each = [of_all / len(instants) for of_all in seconds["all"]]
    single = [window / one for window, one in zip(seconds["windows"], each, strict=True)]
    return [
        *out,
        spread(f"{label}: one pass, {len(few):,} requests", seconds["few instants"], "CPU s"),
        spread(f"{label}: one pass, {len(instants):,} requests", seconds["all"], "CPU s"),
        spread(f"{label}: one request, its window alone", seconds["windows"], "CPU s"),
        spread(f"{label}: window alone / a request of {len(instants):,} in one pass", single, "x"),
        spread(f"three times the events / a third, {len(instants):,} requests", by_events, "x"),
    ]
