"""How a stream is, on one screen of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from tidemill.pipelines.status.standing import (
    Freshness,
    PartitionStanding,
    ProofStanding,
    SettingsStanding,
    SourceStanding,
    Standing,
    State,
    ViewStanding,
)

COLUMNS: Final = 80
_COLOURS: Final = {
    State.RUNNING: "green",
    State.STARTING: "yellow",
    State.STOPPED: "yellow",
    State.ENDED: "cyan",
    State.FAILED: "bold red",
    State.KILLED: "bold red",
}
_LEAST_PARTITIONS: Final = 2
_MOST_LINES: Final = 3
"""How many lines a sentence has at most."""
_DIM: Final = "bright_black"


def render(standing: Standing, columns: int = COLUMNS, lines: int | None = None) -> Text:
    """Return the screen.

    Args:
        standing: How the stream is.
        columns: The width of the terminal.
        lines: Its height: partitions and views that have nothing to say are left out, and counted,
            until the rest fits; None shows all.
    """
    partitions = sum(len(one.partitions) for one in standing.sources)
    views = len(standing.views)
    screen = _screen(standing, columns, partitions, views)
    if lines is None:
        return screen
    while (over := _height(screen) - lines) > 0 and (partitions > _LEAST_PARTITIONS or views > 1):
        if partitions > _LEAST_PARTITIONS:
            partitions = max(partitions - over, _LEAST_PARTITIONS)
        else:
            views = max(views - (over + 1) // 2, 1)  # a view has two lines
        screen = _screen(standing, columns, partitions, views)
    return screen


def _height(screen: Text) -> int:
    return screen.plain.count("\n") + 1


def _screen(standing: Standing, columns: int, partitions: int, views: int) -> Text:
    lines = list(_lines(standing, columns, partitions, views))
    for line in lines:
        line.truncate(columns, overflow="ellipsis")
        line.rstrip()
    joined = Text("\n").join(lines)
    joined.no_wrap, joined.overflow = True, "ellipsis"
    return joined


def _lines(standing: Standing, columns: int, partitions: int, views: int) -> Iterator[Text]:
    yield from _head(standing, columns)
    if standing.sources:
        yield from _sources(standing.sources, partitions, columns)
    if standing.views:
        yield from _views(standing.views, views, columns)
    yield from _results(standing)


def _head(standing: Standing, columns: int) -> Iterator[Text]:
    stream = standing.stream
    title = Text(f"tidemill · {standing.project}", "bold")
    title.append(" " * max(columns - len(title.plain) - len(standing.at), 1))
    yield title.append(standing.at, _DIM)
    line = Text("● ", _COLOURS.get(stream.state, _DIM)).append(
        str(stream.state), _COLOURS.get(stream.state, "bold")
    )
    facts = [
        " ".join(filter(None, (stream.engine, stream.mode))),
        f"pid {stream.pid} on {stream.host}" if stream.pid and stream.state.runs else "",
        f"for {_duration(stream.seconds)}" if stream.seconds is not None else "",
    ]
    yield line.append("".join(f" · {fact}" for fact in facts if fact))
    if stream.state is not State.RUNNING:
        yield from _wrapped(stream.said, columns)
    facts = []
    if stream.savepoint is not None:
        facts.append(f"savepoint {stream.savepoint} of {stream.savepoint_as_of}")
    if stream.listen is not None and stream.state.runs:
        facts.append(f"http://{stream.listen}/metrics")
    if facts:
        yield Text("  " + " · ".join(facts), _DIM)
    if standing.settings is not None:
        yield from _settings(standing.settings, columns)
    if stream.state.runs and (stream.figures_age_s or 0) > 10:
        age = _duration(stream.figures_age_s or 0)
        yield Text(f"  its figures are {age} old: the process does not write them", "yellow")


def _settings(settings: SettingsStanding, columns: int) -> Iterator[Text]:
    if settings.error:
        yield from _wrapped(f"it has refused its file at {settings.at}: {settings.error}", columns)
        return
    taken = ", ".join(settings.taken) or "nothing"
    yield from _wrapped(f"settings of {settings.at}: it has taken over {taken}", columns)
    if settings.waiting:
        yield from _wrapped(f"a restart takes over {', '.join(settings.waiting)}", columns)


def _wrapped(said: str, columns: int) -> Iterator[Text]:
    """Yield a sentence in at most `_MOST_LINES` lines."""
    lines = textwrap.wrap(
        said,
        columns,
        initial_indent="  ",
        subsequent_indent="  ",
        max_lines=_MOST_LINES,
        placeholder=" …",
    )
    yield from map(Text, lines)


def _sources(sources: Sequence[SourceStanding], shown: int, columns: int) -> Iterator[Text]:
    yield Text()
    width = min(max(len(_name(s, p)) for s in sources for p in s.partitions or [_NONE]), 24)
    width = max(width, len("SOURCE"))
    heads = ("SOURCE".ljust(width), "READ TO", "END", "LAG", "TIME BEHIND", "LAST MESSAGE")
    yield Text(
        f"{heads[0]} {heads[1]:>12} {heads[2]:>12} {heads[3]:>9} {heads[4]:>12} {heads[5]:>13}",
        "bold",
    )
    rows = [(source, part) for source in sources for part in source.partitions]
    ranked = sorted(rows, key=lambda one: _urgency(one[1]), reverse=True)[:shown]
    kept = {(source.source, part.partition) for source, part in ranked}
    for source, part in rows:
        if (source.source, part.partition) in kept:
            yield _partition(source, part, width)
    if left := len(rows) - len(kept):
        yield Text(f"{'':{width}} and {left} more, which are not further behind", _DIM)
    for why in dict.fromkeys(source.broker for source in sources if source.broker):
        for line in _wrapped(f"broker: {why}", columns):
            line.stylize("red")
            yield line


_NONE: Final = PartitionStanding(0, None)


def _name(source: SourceStanding, part: PartitionStanding) -> str:
    return f"{source.source}/{part.partition}"


def _urgency(part: PartitionStanding) -> tuple[int, float]:
    lag = part.lag or 0
    return lag, part.watermark_lag_s if part.watermark_lag_s is not None else float("inf")


def _partition(source: SourceStanding, part: PartitionStanding, width: int) -> Text:
    name = _name(source, part)
    if len(name) > width:
        number = f"/{part.partition}"
        name = f"{source.source[: width - len(number) - 1]}…{number}"
    line = Text(name.ljust(width))
    line.append(f" {_number(part.offset):>12} {_number(part.end):>12}")
    line.append(f" {_number(part.lag):>9}", "yellow" if part.lag else "")
    behind = "-" if part.watermark_lag_s is None else _duration(part.watermark_lag_s)
    line.append(f" {behind:>12}")
    last = "-" if part.last_message_s is None else f"{_duration(part.last_message_s)} ago"
    line.append(f" {last:>13}", _DIM)
    if part.is_open:
        line.append(" open", "yellow")
    return line


def _views(views: Sequence[ViewStanding], shown: int, columns: int) -> Iterator[Text]:
    yield Text()
    width = max(len("VIEW"), *(min(len(view.view), columns - 50) for view in views))
    yield Text(f"{'VIEW':{width}} {'CAUGHT UP':9} {'STALE':>9} {'FRONTIER':21}", "bold")
    ranked = sorted(
        views, key=lambda one: (one.caught_up is True, -(one.stale_s or 0)), reverse=False
    )[:shown]
    kept = {view.view for view in ranked}
    for view in views:
        if view.view not in kept:
            continue
        name = view.view if len(view.view) <= width else view.view[: width - 1] + "…"
        line = Text(f"{name:{width}} ")
        said, colour = {True: ("yes", "green"), False: ("no", "red"), None: ("-", "")}[
            view.caught_up
        ]
        line.append(f"{said:9}", colour)
        line.append(f" {'-' if view.stale_s is None else _duration(view.stale_s):>9}")
        yield line.append(f" {view.frontier or '-'}")
        yield Text("  waits for ", _DIM).append(
            view.waits_for.said, "" if view.caught_up else "yellow"
        )
    if left := len(views) - len(kept):
        yield Text(f"{'':{width}} and {left} more, which are not further behind", _DIM)


def _results(standing: Standing) -> Iterator[Text]:
    if standing.predictions is not None:
        yield Text()
        line = Text("OUT       ", "bold").append(f"{standing.predictions:,} predictions", "default")
        if standing.stream.seconds:
            line.append(f" ({standing.predictions / standing.stream.seconds:,.1f}/s)", _DIM)
        if standing.waiting:
            line.append(f" · {standing.waiting:,} requests wait")
        yield line.append(f" · {standing.publications or 0:,} rows published")
        fresh = [
            f"{name} p50 {_duration(found.p50)}, p99 {_duration(found.p99)}"
            for name, found in _fresh(standing)
        ]
        if fresh:
            yield Text("FRESH     ", "bold").append(" · ".join(fresh), "default")
    if standing.rejected:
        total = sum(standing.rejected.values())
        what = ", ".join(f"{name} {count:,}" for name, count in standing.rejected.items())
        yield Text("REJECTED  ", "bold").append(f"{total:,}: ", "yellow").append(what, "default")
    elif standing.predictions is not None:
        yield Text("REJECTED  ", "bold").append("none", "default")
    yield from _lost(standing.lost)
    yield from _proofs(standing)


def _lost(losses: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """Yield for each source what its topic has lost, and when that was accepted last."""
    for source in dict.fromkeys(one["source"] for one in losses):
        found = [one for one in losses if one["source"] == source]
        count = sum(one["messages"] or 0 for one in found)
        parts = [f"up to {count:,} messages"] if count else []
        parts += ["an unknown number"] if any(one["messages"] is None for one in found) else []
        line = Text("LOST      ", "bold").append(f"{source}: {' and '.join(parts)}", "yellow")
        yield line.append(f" · accepted {found[-1]['accepted_at']}", _DIM)


def _proofs(standing: Standing) -> Iterator[Text]:
    if standing.proof is not None:
        yield from _followed(standing.proof)
    if standing.proven is not None and standing.mismatches is not None:
        colour = "red" if standing.mismatches else "green"
        said = f"{standing.mismatches:,} mismatches in {standing.proven:,} values"
        line = Text("PROOF     ", "bold").append(said, colour)
        if standing.lost_requests:
            line.append(f" · {standing.lost_requests:,} requests without an answer", "red")
        if standing.proven_at is not None:
            line.append(f" · all of it, {standing.proven_at}", _DIM)
        yield line
    elif standing.proof is None and standing.stream.state not in (State.NO_BUILD, State.NEVER):
        said = "none of this stream yet: `tidemill verify` makes one"
        yield Text("PROOF     ", "bold").append(said, _DIM)


def _followed(proof: ProofStanding) -> Iterator[Text]:
    """Yield what a proof that follows the stream has found."""
    colour = "red" if proof.mismatches or proof.stops else "green"
    said = f"up to {proof.up_to or '-'}: {proof.mismatches:,} mismatches in {proof.values:,} values"
    line = Text("PROOF     ", "bold").append(said, colour)
    facts = [f"{count:,} {cause}" for cause, count in sorted(proof.causes.items()) if count]
    if proof.share < 1:
        facts.insert(0, f"a share of {proof.share:g}")
    if proof.behind_s:
        facts.append(f"{_duration(proof.behind_s)} behind")
    if not proof.runs:
        facts.append(f"not running since {proof.at}")
    if proof.lost_requests:
        line.append(f" · {proof.lost_requests:,} requests held back", "red")
    yield line
    if facts:
        yield Text("          " + " · ".join(facts), _DIM)
    if proof.stops:
        yield Text(f"          {proof.stops}", "red")


def _fresh(standing: Standing) -> Iterator[tuple[str, Freshness]]:
    if standing.to_store is not None:
        yield "in the store", standing.to_store
    if standing.to_prediction is not None:
        yield "predicted", standing.to_prediction


def _number(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _duration(seconds: float) -> str:
    """Write a duration in at most eight characters.

    >>> [_duration(one) for one in (0.0123, 1.26, 75, 7_300, 200_000, -1.5)]
    ['12 ms', '1.3 s', '75 s', '2 h 1 m', '2 d 7 h', '-1.5 s']
    """
    if abs(seconds) < 0.1:
        return f"{seconds * 1_000:.0f} ms"
    if abs(seconds) < 10:
        return f"{seconds:.1f} s"
    if abs(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if abs(minutes) < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} m"
    return f"{minutes // 1_440} d {minutes % 1_440 // 60} h"
