"""What the programs in plain Python share: the job, and a card's payments with their features."""

from __future__ import annotations

import bisect
import json
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

DISORDER_MS = 1_000
WINDOWS_MS = {"10m": 600_000, "1h": 3_600_000, "1d": 86_400_000}
LONGEST_MS = max(WINDOWS_MS.values())
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - older Pythons, too
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Job:
    """What a program is to do: one JSON object, in the file that its first argument names."""

    bootstrap: str
    payments: str
    requests: str
    answers: str
    form: str
    parallelism: int
    folder: str
    steady: bool
    jars: list[str]


def job() -> Job:
    """Read the job."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def millis(text: str) -> int:
    """Return the milliseconds since 1970 of a time that ends with Z."""
    return (datetime.fromisoformat(text) - _EPOCH) // _MS


def add_payment(times: list[int], amounts: list[float], at: int, amount: float, until: int) -> None:
    """Add a payment in the order of time, and forget those before every window.

    Args:
        times: The times of a card's payments, ascending.
        amounts: Their amounts.
        at: The time of another one.
        amount: Its amount.
        until: A time before which nothing is asked any more.
    """
    if not times or at >= times[-1]:
        times.append(at)
        amounts.append(amount)
    else:
        place = bisect.bisect_right(times, at)
        times.insert(place, at)
        amounts.insert(place, amount)
    old = until - LONGEST_MS
    if times[0] < old:
        kept = bisect.bisect_left(times, old)
        del times[:kept], amounts[:kept]


def features_at(times: list[int], amounts: list[float], at: int) -> dict[str, float | None]:
    """Return the features of a card's payments before an instant."""
    head = bisect.bisect_left(times, at)
    out: dict[str, float | None] = {}
    for name, window in WINDOWS_MS.items():
        part = amounts[bisect.bisect_left(times, at - window, 0, head) : head]
        total = sum(part)
        out["count_" + name] = len(part)
        out["sum_" + name] = total
        out["mean_" + name] = total / len(part) if part else None
        out["max_" + name] = max(part) if part else None
    return out
