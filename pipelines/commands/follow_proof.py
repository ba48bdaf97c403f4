"""`tidemill verify --follow`: what a proof that follows a stream prints, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from tidemill.features.contract import write_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidemill.pipelines.config.configuration import Configuration
    from tidemill.pipelines.run.proof_record import Difference, ProofRecord
    from tidemill.pipelines.verify.follow.follow import Step

_POLITE: Final = 10
"""The stream beside it goes first."""
_SECOND_US: Final = 1_000_000


def follow_proof(
    config: Configuration,
    *,
    quiet: bool,
    share: float | None,
    every: float | None,
    keep_up: bool,
    once: bool,
    until: int | None,
    as_json: bool,
) -> None:
    """Prove a root's stream until somebody stops it; exit with status 1 after a mismatch."""
    from tidemill.pipelines.report.proof_page import write_proof_page
    from tidemill.pipelines.run.draining import draining
    from tidemill.pipelines.verify.follow.follow import FollowOptions, follow

    options = FollowOptions(
        share=1.0 if share is None else share,
        every_s=2.0 if every is None else every,
        once=once,
        until_us=until,
        keeps_up=keep_up,
    )
    with contextlib.suppress(OSError):
        os.nice(_POLITE)
    screen, last = _Screen(quiet=quiet, as_json=as_json), None
    what = "the proof ends after this round; a second one ends it at once"
    with draining(screen.say, what) as stop:
        for step in follow(config, options, stop):
            last = step.record or last
            if step.record is not None and (step.round is not None or not screen.has_page):
                screen.has_page = True
                screen.page = str(write_proof_page(config.project.name, config.root, step.record))
            screen.show(step)
    screen.end(last)
    if last is not None and last.mismatches:
        sys.exit(1)


def instant_of(text: str) -> int:
    """Return the instant that a text names, in microseconds UTC.

    Raises:
        BadParameter: It names none.
    """
    from tidemill.features.definitions import TIMESTAMP
    from tidemill.features.rows import text_values

    found = text_values.parse_one(text, TIMESTAMP, None)
    if type(found) is not int:
        raise click.BadParameter(
            f"found {text!r}, expected a date and time with its offset such as "
            "2013-10-01T00:00:00Z",
            param_hint="--until",
        )
    return found


class _Screen:
    """Prints steps: one line that changes on a terminal, else a line a round.

    Args:
        quiet: Whether only the last line is printed.
        as_json: Whether each round is a JSON object.
    """

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet, self._as_json = quiet, as_json
        self._is_terminal = sys.stdout.isatty() and not as_json
        self._shown = ""
        self._printed = False
        self.page = ""
        self.has_page = False
        self._said_page = False

    def say(self, text: str) -> None:
        """Tell a person what happens, on standard error."""
        self._clear()
        click.echo(text, err=True)

    def show(self, step: Step) -> None:
        """Print a step."""
        if self._quiet:
            return
        if step.said:
            self.say(step.said)
        if step.record is None:
            return
        if self.page and not self._said_page:
            self._said_page = True
            self.say(f"the page of the proof: {self.page}")
        if self._as_json:
            if step.round is not None:
                self._printed = True
                click.echo(json.dumps(content(step.record, step)))
            return
        if step.round is None:
            return
        for one in step.found:
            if one.cause in _faults():
                self.say(f"mismatch: {described(one)}")
        self._printed = True
        self._line(line(step.record, step.behind))

    def _line(self, text: str) -> None:
        if not self._is_terminal:
            click.echo(text)
            return
        self._clear()
        width = os.get_terminal_size(sys.stdout.fileno()).columns
        self._shown = text[: width - 1]
        click.echo(self._shown, nl=False)

    def _clear(self) -> None:
        if self._shown:
            click.echo("\r" + " " * len(self._shown) + "\r", nl=False)
            self._shown = ""

    def end(self, record: ProofRecord | None) -> None:
        """Print the last line, unless it is there."""
        self._clear()
        if record is None or not (self._quiet or self._is_terminal or not self._printed):
            return
        click.echo(json.dumps(content(record)) if self._as_json else line(record, 0))


def line(record: ProofRecord, behind: int) -> str:
    """Return the line that says what is proven."""
    up_to = write_instant(record.up_to_us // _SECOND_US * _SECOND_US) if record.up_to_us else "-"
    share = "" if record.share >= 1 else f" (a share of {record.share:g})"
    parts = [
        f"proved up to {up_to}: {record.mismatches:,} mismatches in {record.values:,} values{share}"
    ]
    parts += [
        f"{count:,} {cause}" for cause, count in _sorted(record.causes) if cause not in _faults()
    ]
    if record.lost:
        count = sum(one["messages"] or 0 for one in record.lost)
        unknown = any(one["messages"] is None for one in record.lost)
        parts.append(f"{count:,}{' and more' if unknown else ''} lost messages accepted")
    if record.lost_requests:
        parts.append(f"{len(record.lost_requests):,} requests held back")
    if record.behind_s:
        waits = f", {behind} segments to prove" if behind else ""
        parts.append(f"{record.behind_s:.0f} s behind{waits}")
    if record.rounds and record.rounds[-1].fresh_s is not None:
        parts.append(f"fresh {record.rounds[-1].fresh_s:.1f} s")
    return " · ".join(parts)


def _sorted(causes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(causes.items(), key=lambda one: (-one[1], one[0]))


def _faults() -> tuple[str, ...]:
    from tidemill.pipelines.run.proof_record import Cause

    return tuple(str(cause) for cause in Cause if cause.is_mismatch)


def described(one: Difference) -> str:
    """Return a difference in a line."""
    of_it = " ".join(filter(None, (one.view, one.feature)))
    entity = f" of entity {one.entity}" if one.entity and one.entity != one.id else ""
    events = f"; events {', '.join(one.events)}" if one.events else ""
    as_of = f" as of {one.as_of}" if one.as_of else ""
    return (
        f"{one.what} {one.id}{entity} {of_it}{as_of}: served {one.served}, recomputed "
        f"{one.recomputed} ({one.cause}: {one.why}{events})"
    )


def content(record: ProofRecord, step: Step | None = None) -> dict[str, Any]:
    """Return what is proven, and what a step has added, as JSON values."""
    done = None if step is None else step.round
    return {
        "at": write_instant(record.at_us),
        "proved_up_to": write_instant(record.up_to_us) if record.up_to_us else None,
        "mismatches": record.mismatches,
        "values": record.values,
        "served": record.served,
        "share": record.share,
        "causes": dict(record.causes),
        "counts": dict(record.counts),
        "behind_s": record.behind_s,
        "behind_segments": 0 if step is None else step.behind,
        "fresh_s": record.rounds[-1].fresh_s if record.rounds else None,
        "round": None
        if done is None
        else {
            "seconds": done.seconds,
            "values": done.values,
            "served": done.served,
            "causes": dict(done.causes),
            "differences": [] if step is None else [dataclasses.asdict(one) for one in step.found],
        },
        "said": "" if step is None else step.said,
        "stops": record.stops,
        "lost": [dict(one) for one in record.lost],
        "lost_requests": list(record.lost_requests),
    }
