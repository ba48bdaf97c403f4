"""The charts of a proof that follows a stream, drawn as SVG without a library.

They are drawn again after each round, beside a stream that needs the processor. A chart refers to
no other file, has the colours of the page, and a text alternative.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.features.contract import SECOND, write_instant
from tidemill.pipelines.run.proof_record import Round

_WIDTH: Final = 960
_HEIGHT: Final = 210
_LEFT: Final = 64
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 26
_BINS: Final = 60


@dataclass(frozen=True)
class Bin:
    """The rounds of a span of time.

    Attributes:
        start_us: Its beginning.
        stop_us: Its end.
        rounds: The rounds that ended in it.
    """

    start_us: int
    stop_us: int
    rounds: Sequence[Round]

    @property
    def values(self) -> int:
        """How many values were recomputed."""
        return sum(one.values for one in self.rounds)

    def rate(self, cause: str) -> float:
        """Return how many of 10,000 values differ by a cause."""
        found = sum(one.causes.get(cause, 0) for one in self.rounds)
        return 10_000 * found / max(self.values, 1)

    @property
    def values_per_s(self) -> float:
        """How many values were recomputed each second."""
        return self.values / max((self.stop_us - self.start_us) / SECOND, 1e-6)


def bins_of(rounds: Sequence[Round]) -> list[Bin]:
    """Cut the time of rounds into equal spans."""
    if not rounds:
        return []
    first_us = rounds[0].at_us - max(int(rounds[0].seconds * SECOND), SECOND)
    last_us = max(rounds[-1].at_us, first_us + SECOND)
    count = min(_BINS, max(2 * len(rounds), 1))
    width = (last_us - first_us) / count
    found: list[list[Round]] = [[] for _ in range(count)]
    for one in rounds:
        found[min(int((one.at_us - first_us) / width), count - 1)].append(one)
    starts = [first_us + round(width * n) for n in range(count + 1)]
    return [Bin(starts[n], starts[n + 1], of_bin) for n, of_bin in enumerate(found)]


def stacked(bins: Sequence[Bin], names: Sequence[str], colours: Mapping[str, str]) -> str:
    """Draw the rate of differences by cause: a bar for each span, from the worst cause up."""
    rates = [[one.rate(name) for name in names] for one in bins]
    top = nice_top(max((sum(of_bin) for of_bin in rates), default=0.0))
    parts = [_frame(bins, top)]
    for place, of_bin in enumerate(rates):
        below = 0.0
        for name, rate in zip(names, of_bin, strict=True):
            if rate:
                said = f"{name}: {rate:.3g} of 10,000 values"
                parts.append(_bar(bins, place, below, below + rate, top, colours[name], said))
            below += rate
    shown = [name for name in names if any(one.rate(name) for one in bins)]
    said = f"differences among 10,000 values: {', '.join(shown) or 'none'}"
    return _svg(parts, said)


def bars(bins: Sequence[Bin], colour: str) -> str:
    """Draw how many values were recomputed each second."""
    top = nice_top(max((one.values_per_s for one in bins), default=0.0))
    parts = [_frame(bins, top)]
    for place, one in enumerate(bins):
        if one.values:
            said = f"{one.values:,} values, {one.values_per_s:,.0f} a second"
            parts.append(_bar(bins, place, 0.0, one.values_per_s, top, colour, said))
    return _svg(parts, "values that were recomputed each second")


def lines(rounds: Sequence[Round], bins: Sequence[Bin], behind: str, fresh: str) -> str:
    """Draw how far the proof was behind the clock, and how fresh the store was, in seconds."""
    points = [one for one in rounds if one.values or one.behind_s]
    known = [one.fresh_s for one in points if one.fresh_s is not None]
    top = nice_top(max([0.0, *(one.behind_s for one in points), *known]))
    parts = [_frame(bins, top)]
    for colour, found in (
        (behind, [(one.at_us, one.behind_s) for one in points]),
        (fresh, [(one.at_us, one.fresh_s) for one in points if one.fresh_s is not None]),
    ):
        places = [(_x(bins, at_us), _y(value, top)) for at_us, value in found]
        if places:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            x, y = places[-1]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    return _svg(parts, "seconds behind the clock, and the age of values in the store")


def nice_top(most: float) -> float:
    """Return the end of an axis: 1, 2 or 5 times a power of ten.

    >>> [nice_top(one) for one in (0.0, 0.3, 7, 11, 2_300)]
    [1.0, 0.5, 10.0, 20.0, 5000.0]
    """
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if most <= step * power * 1.0001)


def _x(bins: Sequence[Bin], at_us: int) -> float:
    first, last = bins[0].start_us, bins[-1].stop_us
    share = (at_us - first) / max(last - first, 1)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)


def _bar(
    bins: Sequence[Bin], place: int, low: float, high: float, top: float, colour: str, said: str
) -> str:
    left, right = _x(bins, bins[place].start_us), _x(bins, bins[place].stop_us)
    upper, lower = _y(high, top), _y(low, top)
    width = max(right - left - 1, 1)
    at = write_instant(bins[place].stop_us // SECOND * SECOND)
    return (
        f'<rect x="{left:.1f}" y="{upper:.1f}" width="{width:.1f}" '
        f'height="{max(lower - upper, 1):.1f}" fill="{colour}">'
        f"<title>{html.escape(f'until {at}: {said}')}</title></rect>"
    )


def _frame(bins: Sequence[Bin], top: float) -> str:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _y(share * top, top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="var(--lines)"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" class="axis">'
            f"{_number(share * top)}</text>"
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        at_us = bins[0].start_us + int(share * (bins[-1].stop_us - bins[0].start_us))
        x = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        text = write_instant(at_us // SECOND * SECOND)
        shown = text if share == 0 else text[11:]
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}" class="axis">'
            f"{shown}</text>"
        )
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def _svg(parts: Sequence[str], said: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(said)}">{"".join(parts)}</svg>'
    )
