"""The rows of the job, their messages, and the answers that are right.

Times are milliseconds since 1970; amounts are whole cents, so that sums of them are exact.
"""

from __future__ import annotations

import bisect
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CARDS: Final = 20_000
PARTITIONS: Final = 2
REQUEST_EVERY: Final = 4
DISORDER_MS: Final = 1_000
"""By how much rows may be out of order."""
WINDOWS_MS: Final = {"10m": 600_000, "1h": 3_600_000, "1d": 86_400_000}
NAMES: Final = tuple(f"{what}_{w}" for w in WINDOWS_MS for what in ("count", "sum", "mean", "max"))
_LATE_SHARE: Final = 0.05
_LATEST_MS: Final = 900
_CLOSE: Final = 1e-9

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows in the order in which they are sent.

    Attributes:
        first: The number of the first row; a row's id ends with its number.
        sent: int64, ``(rows,)``: when each is sent.
        times: int64, ``(rows,)``: the event times.
        cards: int64, ``(rows,)``: the numbers of their cards.
        cents: int64, ``(rows,)``: the amounts; those of requests mean nothing.
    """

    first: int
    sent: Int64s
    times: Int64s
    cards: Int64s
    cents: Int64s

    @property
    def asks(self) -> npt.NDArray[np.bool_]:
        """bool, ``(rows,)``: which rows are requests."""
        return (self.first + np.arange(len(self.sent))) % REQUEST_EVERY == 0

    def save(self, path: Path) -> None:
        """Write them to a file, whole or not at all."""
        columns = np.stack([self.sent, self.times, self.cards, self.cents])
        scratch = path.with_suffix(".part")
        with scratch.open("wb") as file:
            np.savez(file, columns=columns, first=self.first)
        scratch.rename(path)

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read what `save` wrote."""
        with np.load(path) as found:
            return cls(int(found["first"]), *found["columns"])


def make(sent: Int64s, first: int, seed: int) -> Rows:
    """Make rows that are sent at some times; a few payments come up to 0.9 s late."""
    chance = np.random.default_rng(seed)
    count = len(sent)
    late = np.where(chance.random(count) < _LATE_SHARE, chance.integers(0, _LATEST_MS, count), 0)
    asks = (first + np.arange(count)) % REQUEST_EVERY == 0
    cents = np.maximum(np.round(chance.lognormal(3.5, 1.0, count) * 100), 1).astype(np.int64)
    times = np.where(asks, sent, sent - late)
    return Rows(first, sent, times, chance.integers(0, CARDS, count), cents)


def evenly(rows: int, begin_ms: int, end_ms: int, first: int = 0, seed: int = 1) -> Rows:
    """Make rows that are sent evenly between two times."""
    return make(np.linspace(begin_ms, end_ms, rows).astype(np.int64), first, seed)


def instants(times: Int64s) -> list[str]:
    """Write times as texts: ``2026-01-31T10:00:00.123Z``."""
    return [f"{one}Z" for one in np.datetime_as_string(times.astype("datetime64[ms]"))]


def objects(rows: Rows) -> list[str]:
    """Return a JSON object for each row."""
    columns = zip(
        range(rows.first, rows.first + len(rows.sent)),
        rows.asks.tolist(),
        instants(rows.times),
        rows.cards.tolist(),
        (rows.cents / 100).tolist(),
        strict=True,
    )
    return [
        f'{{"request":"r-{number}","asked_at":"{time}","card":"c-{card}"}}'
        if asks
        else f'{{"payment":"p-{number}","paid_at":"{time}","card":"c-{card}","amount":{amount}}}'
        for number, asks, time, card, amount in columns
    ]


@dataclass(frozen=True)
class Message:
    """A message: whether it has requests, its partition, key, bytes, and when it is sent."""

    asks: bool
    partition: int
    key: bytes | None
    value: bytes
    sent_ms: int


def messages(rows: Rows, form: str, batch: int = 1_000) -> Iterator[Message]:
    """Make the messages of rows.

    Args:
        rows: The rows.
        form: ``rows`` (a JSON object a message), ``json`` or ``arrow`` (a batch a message: an array
            of objects, an Arrow stream).
        batch: The rows of a message that has many.
    """
    if form == "rows":
        columns = (rows.asks.tolist(), objects(rows), rows.cards.tolist(), rows.sent.tolist())
        for asks, text, card, sent in zip(*columns, strict=True):
            key = f"c-{card}".encode()
            yield Message(asks, card % PARTITIONS, key, text.encode(), sent)
        return
    found = []
    asks = rows.asks
    for requests in (True, False):
        for partition in range(PARTITIONS):
            of = np.flatnonzero((asks == requests) & (rows.cards % PARTITIONS == partition))
            for begin in range(0, len(of), batch):
                which = of[begin : begin + batch]
                value = (_array if form == "json" else _arrow)(rows, which, requests)
                sent = int(rows.sent[which[-1]])
                found.append(Message(requests, partition, None, value, sent))
    yield from sorted(found, key=lambda one: one.sent_ms)


def _part(rows: Rows, which: Int64s) -> tuple[list[int], list[str], list[int], list[float]]:
    return (
        (rows.first + which).tolist(),
        instants(rows.times[which]),
        rows.cards[which].tolist(),
        (rows.cents[which] / 100).tolist(),
    )


def _array(rows: Rows, which: Int64s, requests: bool) -> bytes:
    parts = zip(*_part(rows, which), strict=True)
    if requests:
        made = (f'{{"request":"r-{n}","asked_at":"{t}","card":"c-{c}"}}' for n, t, c, _ in parts)
    else:
        made = (
            f'{{"payment":"p-{n}","paid_at":"{t}","card":"c-{c}","amount":{a}}}'
            for n, t, c, a in parts
        )
    return f"[{','.join(made)}]".encode()


def _arrow(rows: Rows, which: Int64s, requests: bool) -> bytes:
    numbers, _, cards, amounts = _part(rows, which)
    kind, time, letter = ("request", "asked_at", "r") if requests else ("payment", "paid_at", "p")
    columns: dict[str, Any] = {
        kind: pa.array([f"{letter}-{n}" for n in numbers]),
        time: pa.array(rows.times[which] * 1_000).cast(pa.timestamp("us", "UTC")),
        "card": pa.array([f"c-{card}" for card in cards]),
    }
    if not requests:
        columns["amount"] = pa.array(amounts)
    batch = pa.RecordBatch.from_pydict(columns)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def differences(
    logs: Sequence[Rows], answers: Mapping[str, Mapping[str, Any]], grid_ms: int
) -> list[str]:
    """Compare answers with those that are right.

    Args:
        logs: All rows that were sent.
        answers: The features of each answered request, by its id.
        grid_ms: The grid on which the begin of a window moves: an answer as of ``t`` counts the
            payments from ``t - window``, rounded down to the grid, to before ``t``.

    Returns:
        A line for each request whose answer differs, or that does not exist.
    """
    of_card: dict[int, list[tuple[int, int]]] = {}
    asked: dict[str, tuple[int, int]] = {}
    for log in logs:
        columns = (log.asks.tolist(), log.times.tolist(), log.cards.tolist(), log.cents.tolist())
        for number, (asks, time, card, cents) in enumerate(zip(*columns, strict=True), log.first):
            if asks:
                asked[f"r-{number}"] = (card, time)
            else:
                of_card.setdefault(card, []).append((time, cents))
    split = {}
    for card, paid in of_card.items():
        paid.sort()
        split[card] = [time for time, _ in paid], [cents for _, cents in paid]
    wrong = []
    for name, found in answers.items():
        if name not in asked:
            wrong.append(f"{name}: nobody asked for it")
            continue
        card, time = asked[name]
        right = _right(*split.get(card, ([], [])), time, grid_ms)
        if not all(_equal(found[key], value) for key, value in right.items()):
            wrong.append(f"{name}: {json.dumps({key: found[key] for key in right})}, not {right}")
    return wrong


def _right(times: list[int], cents: list[int], at: int, grid_ms: int) -> dict[str, float | None]:
    head = bisect.bisect_left(times, at)
    out: dict[str, float | None] = {}
    for name, window in WINDOWS_MS.items():
        tail = bisect.bisect_left(times, (at - window) // grid_ms * grid_ms)
        part = cents[tail:head]
        out[f"count_{name}"] = len(part)
        out[f"sum_{name}"] = sum(part) / 100
        out[f"mean_{name}"] = sum(part) / 100 / len(part) if part else None
        out[f"max_{name}"] = max(part) / 100 if part else None
    return out


def _equal(found: float | None, right: float | None) -> bool:
    if found is None or right is None:
        return not found and not right
    return math.isclose(found, right, rel_tol=_CLOSE, abs_tol=_CLOSE)
