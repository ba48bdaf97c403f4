"""The report's pictures, as inline SVG with the colours of the page.

Promises: a picture refers to no other file, shares no id with another picture of the page, follows
the page's light and dark colours, and has a text alternative. The same figures give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tidemill.pipelines.training.evaluation import CalibrationBin, FloatArray

# Placeholders, which nothing else draws with; `_inline` replaces them with the page's colours.
_INK: Final = "#010203"
_MUTED: Final = "#010204"
_LINES: Final = "#010205"
_FIRST: Final = "#010206"
_SECOND: Final = "#010207"
_PAGE_COLOURS: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINES: "var(--lines)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
}

_STYLES: Final = (
    {"color": _FIRST, "linestyle": "-", "marker": "o"},
    {"color": _SECOND, "linestyle": "--", "marker": "s"},
)
_WIDTH_INCHES: Final = 5.2
_LATENCY_POINTS: Final = 400
_WIDE: Final = 20.0
"""The axis is logarithmic if the longest latency is more than this times the shortest."""
_LEAST_LATENCY_MS: Final = 0.01
QUANTILES: Final = (50, 90, 99)


@dataclass(frozen=True)
class Curve:
    """The curves of one set of scores.

    Attributes:
        name: The name in the legend.
        calibration: Mean score and share of positive labels, by bin.
        roc: (false positive rate, true positive rate) pairs; may be empty.
    """

    name: str
    calibration: tuple[CalibrationBin, ...]
    roc: tuple[tuple[float, float], ...]


def draw_calibration(curves: Sequence[Curve]) -> str:
    """Draw calibration curves, and below them the number of rows in each bin.

    Args:
        curves: One or two; the bins of the first show the numbers of rows.

    Returns:
        An ``svg`` element.
    """
    first = curves[0]
    alt_text = "; ".join(
        f"predicted {b.mean_score:.0%}, label is 1 in {b.rate:.0%} of {b.rows:,} rows"
        for b in first.calibration
    )
    with _figure("calibration", 5.0, f"Calibration, {first.name}: {alt_text}") as (figure, done):
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":")
        for curve, style in zip(curves, _STYLES, strict=False):
            upper.plot(
                [b.mean_score for b in curve.calibration],
                [b.rate for b in curve.calibration],
                label=curve.name,
                markersize=5,
                **style,
            )
        upper.set_ylabel("share of label 1")
        upper.set(xlim=(0, 1), ylim=(0, 1))
        upper.legend(loc="upper left", frameon=False)
        lower.bar(
            [(b.low + b.high) / 2 for b in first.calibration],
            [b.rows for b in first.calibration],
            width=[(b.high - b.low) * 0.9 for b in first.calibration],
            color=_FIRST,
        )
        most = max(b.rows for b in first.calibration)
        for b in first.calibration:
            place = ((b.low + b.high) / 2, b.rows)
            lower.annotate(
                short_count(b.rows), place, (0, 2), textcoords="offset points", ha="center",
                fontsize=9,
            )  # fmt: skip
        lower.set_ylim(0, most * 1.35)
        lower.set_yticks([])
        lower.set_ylabel("rows")
        lower.set_xlabel("predicted probability")
        for axes in (upper, lower):
            axes.xaxis.set_major_formatter(_percent)
        upper.yaxis.set_major_formatter(_percent)
    return done()


def draw_roc(curves: Sequence[Curve]) -> str:
    """Draw ROC curves.

    Args:
        curves: One or two, with points.

    Returns:
        An ``svg`` element.
    """
    names = " and ".join(curve.name for curve in curves)
    with _figure("roc", 5.0, f"ROC curve, {names}") as (figure, done):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":")
        for curve, style in zip(curves, _STYLES, strict=False):
            plain = {**style, "marker": ""}
            axes.plot(*zip(*curve.roc, strict=True), label=curve.name, **plain)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_xlabel("false alarms: share of label 0")
        axes.set_ylabel("hits: share of label 1")
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_percent)
        axes.legend(loc="lower right", frameon=False)
    return done()


def draw_latency(latency_ms: FloatArray) -> str:
    """Draw the cumulative distribution of latency, with quantiles.

    Args:
        latency_ms: ``(predictions,)``, at least one, in milliseconds.

    Returns:
        An ``svg`` element.
    """
    shown = np.sort(np.maximum(np.asarray(latency_ms, np.float64), _LEAST_LATENCY_MS))
    shares = np.arange(1, len(shown) + 1) / len(shown)
    drawn = np.unique(np.linspace(0, len(shown) - 1, _LATENCY_POINTS).astype(np.int64))
    marks = [(q, float(np.percentile(shown, q))) for q in QUANTILES]
    alt_text = ", ".join(f"p{q} {write_ms(at)}" for q, at in marks)
    wide = shown[-1] > _WIDE * shown[0]
    low, high = (shown[0], shown[-1] * 1.15) if wide else (0.0, shown[-1] * 1.1)
    with _figure("latency", 3.4, f"Latency of {len(shown):,} predictions: {alt_text}") as (
        figure,
        done,
    ):
        axes = figure.subplots()
        axes.plot(
            [low, *shown[drawn], high], [0, *shares[drawn], 1], color=_FIRST, drawstyle="steps-post"
        )
        if wide:
            axes.set_xscale("log")
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", nbins=5)  # more would touch each other
        axes.set(xlim=(low, high), ylim=(0, 1.08))
        for quantile, at in marks:
            axes.plot([at], [quantile / 100], color=_SECOND, marker="o", markersize=6)
            # Put the label below and right of the point, or left of it near the right edge.
            right = (np.log(at / low) < np.log(high / low) * 0.7) if wide else at < high * 0.7
            axes.annotate(
                f"p{quantile}", (at, quantile / 100), (8 if right else -8, -4),
                textcoords="offset points", ha="left" if right else "right",
                va="top" if right else "center",
            )  # fmt: skip
        axes.xaxis.set_major_formatter(lambda value, _place: write_ms(value))
        axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel("time from reading a request to its prediction")
        axes.set_ylabel("share of predictions")
    return done()


def write_ms(value_ms: float) -> str:
    """Format a duration, given in milliseconds, in a suitable unit.

    >>> write_ms(0.42), write_ms(37), write_ms(1234), write_ms(180_000)
    ('0.42 ms', '37 ms', '1.23 s', '3 min')
    """
    if value_ms < 1_000:
        return f"{value_ms:.3g} ms"
    if value_ms < 120_000:
        return f"{value_ms / 1_000:.3g} s"
    return f"{value_ms / 60_000:.3g} min"


def short_count(count: int) -> str:
    """Format a count in about four characters.

    >>> short_count(87), short_count(4_321), short_count(28_212), short_count(1_250_000)
    ('87', '4.3k', '28k', '1.2M')
    """
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            value = count / size
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(count)


def _percent(value: float, _place: int | None = None) -> str:
    return f"{value * 100:.3g}%"


@contextmanager
def _figure(
    name: str, height_inches: float, alt_text: str
) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Yield a figure in the report's style, and a function that returns it as an element."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # gives the ids of each picture another hash
        "font.size": 11,
        "axes.edgecolor": _LINES,
        "axes.labelcolor": _MUTED,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "grid.color": _LINES,
        "grid.linewidth": 0.6,
        "lines.linewidth": 2,
        "text.color": _INK,
        "xtick.color": _LINES,
        "ytick.color": _LINES,
        "xtick.labelcolor": _MUTED,
        "ytick.labelcolor": _MUTED,
    }
    written: list[str] = []
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, lambda: _inline(written[0], name, alt_text)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        written.append(file.getvalue())


def _inline(document: str, name: str, alt_text: str) -> str:
    """Turn matplotlib's SVG document into an element of an HTML page."""
    box = re.search(r'viewBox="([^"]*)"', document)
    assert box is not None  # every drawing of matplotlib has one
    inside = document[document.index(">", box.end()) + 1 : document.rindex("</svg>")]
    inside = re.sub(r"<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    # The style would apply to all of the page; report.css has it for pictures only.
    inside = re.sub(r"<style.*?</style>", "", inside, flags=re.DOTALL)
    # The ids of groups repeat in every picture, and nothing refers to them.
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)
    inside = re.sub(r"font-family: [^;\"]*;? ?", "", inside)
    inside = re.sub(r' transform="rotate\(-0 [^"]*"', "", inside)
    inside = inside.replace("xlink:href", "href")
    inside = re.sub(r"\s*\n\s*", "\n", inside)
    for colour, of_page in _PAGE_COLOURS.items():
        inside = inside.replace(colour, of_page)
    return (
        f'<svg class="picture" viewBox="{box[1]}" role="img" aria-labelledby="picture-{name}">'
        f'<title id="picture-{name}">{html.escape(alt_text)}</title>{inside}</svg>'
    )
