"""Comparing releases with the log alone: each is there, and follows from the polls before it.

A release says up to which positions its operator had taken the log, and its frontier. Both follow
from the polls that the live log has, without an operator: the positions are those of its poll, the
frontier is the least watermark (in exact mode). Its mark follows from these and the mark before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.features.contract import TIME_MAX, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.pipelines.io.live.live_cuts import Cuts, LiveTopic
from tidemill.pipelines.recovery.release_log import place_of
from tidemill.pipelines.stream.marks import next_mark
from tidemill.pipelines.verify.diagnosis import Kind
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text

Place = tuple[str, int]
"""A view and a shard."""


@dataclass(frozen=True)
class Reached:
    """How far an operator has come.

    Attributes:
        number: The number of its last release; 0 for the state that the stream began with.
        frontier_us: Its frontier.
        positions: The next position of each partition, first of events and then of requests.
        mark: Its mark.
        applied: The positions up to which it has applied the rows before its frontier. In exact
            mode all rows wait until the frontier moves, also those that come late: so these are
            the positions of the last release that has moved it.
    """

    number: int
    frontier_us: int
    positions: tuple[int, ...]
    mark: bytes
    applied: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PollEnds:
    """Where successive polls end, as the live log has them.

    Attributes:
        first: The number of the first of them.
        positions: View to int64, ``(polls, partitions)``: of its events, then of requests.
        frontiers: View to int64, ``(polls,)``: the least watermark; None in eager mode.
    """

    first: int
    positions: Mapping[str, Int64Array]
    frontiers: Mapping[str, Int64Array] | None


def poll_ends(
    project: Project,
    cuts: Cuts,
    topics: Mapping[str, LiveTopic],
    lengths: Mapping[str, Sequence[int]],
    *,
    first: int,
    is_exact: bool,
) -> PollEnds:
    """Return where polls end.

    Args:
        project: The project.
        cuts: The polls, as the live log has them.
        topics: The topic of each live source.
        lengths: Source to the rows of each partition, of which those of files count: these have
            ended.
        first: The number that the stream gives the first of the polls.
        is_exact: Whether the frontier follows from the watermarks.
    """
    positions, watermarks = {}, {}
    count = len(cuts.number)
    for name in (*(stream.name for stream in project.streams), project.request.name):
        topic = topics.get(name)
        files = list(lengths[name] if topic is None else lengths[name][: topic.first])
        ended = np.full((count, len(files)), TIME_MAX)
        fixed = np.tile(np.array(files, np.int64), (count, 1))
        if topic is None:
            positions[name], watermarks[name] = fixed, ended
            continue
        positions[name] = np.concatenate([fixed, cuts.positions[name]], axis=1)
        watermarks[name] = np.concatenate([ended, cuts.watermarks[name]], axis=1)
    request = project.request.name

    def of_view(found: Mapping[str, Int64Array], view: FeatureView) -> Int64Array:
        both: Int64Array = np.concatenate([found[view.stream.name], found[request]], axis=1)
        return both

    frontiers = {view.name: of_view(watermarks, view).min(axis=1) for view in project.views}
    return PollEnds(
        first,
        {view.name: of_view(positions, view) for view in project.views},
        frontiers if is_exact else None,
    )


def check_releases(
    releases: Sequence[Mapping[str, Any]],
    before: Mapping[Place, Reached],
    last: int,
    ends: PollEnds | None,
    findings: Findings,
    *,
    is_exact: bool,
) -> Iterator[tuple[Place, Reached]]:
    """Compare the releases after those of ``before`` up to a number.

    Args:
        releases: The releases, by view, shard and number.
        before: How far each operator had come.
        last: The number of the last release that each must have.
        ends: Where their polls end; None where no live log says it.
        findings: Takes the mismatches.
        is_exact: Whether rows wait until the frontier moves.

    Yields:
        How far an operator had come with each release, in order; as the live log says it, if there
        is one.
    """
    found = {place_of(one): one for one in releases}
    for view, shard in before:
        at = before[view, shard]
        for number in range(before[view, shard].number + 1, last + 1):
            entry = found.get((view, shard, number))
            if entry is None:
                cause = "the engine lost it, or it was removed: every step leaves evidence"
                _note(
                    findings, view, shard, number, "", "no evidence", "one", cause, kind=Kind.LOST
                )
                continue
            at = _check(entry, at, ends, findings, is_exact=is_exact)
            yield (view, shard), at


def _check(
    entry: Mapping[str, Any],
    before: Reached,
    ends: PollEnds | None,
    findings: Findings,
    *,
    is_exact: bool,
) -> Reached:
    view, shard, number = place_of(entry)
    positions = tuple(map(int, entry["positions"]))
    frontier_us = int(entry["frontier_us"])
    if ends is not None:
        place = number - ends.first
        right = tuple(ends.positions[view][place].tolist())
        if positions != right:
            _note(
                findings, view, shard, number, "positions", list(positions), list(right),
                "its poll ends elsewhere in the log",
            )  # fmt: skip
        if ends.frontiers is not None:
            least = max(int(ends.frontiers[view][place]), before.frontier_us)
            if frontier_us != least:
                _note(
                    findings, view, shard, number, "frontier_us", frontier_us, least,
                    "the frontier is not the least watermark of the poll",
                )  # fmt: skip
            frontier_us, positions = least, right
    is_next = before.number == number - 1
    mark = bytes.fromhex(entry["mark"])
    if is_next and entry["mark_before"] != before.mark.hex():
        _note(
            findings, view, shard, number, "mark_before", entry["mark_before"], before.mark.hex(),
            "it does not follow the release before it",
        )  # fmt: skip
    made = next_mark(bytes.fromhex(entry["mark_before"]), number, positions, frontier_us)
    if mark != made:
        _note(
            findings, view, shard, number, "mark", entry["mark"], made.hex(),
            "the mark is not that of its positions and frontier",
        )  # fmt: skip
    is_held = is_exact and frontier_us <= before.frontier_us
    return Reached(number, frontier_us, positions, made, before.applied if is_held else positions)


def _note(
    findings: Findings,
    view: str,
    shard: int,
    number: int,
    field: str,
    seen: Any,
    expected: Any,
    cause: str,
    kind: str = "",
) -> None:
    findings.add(
        Mismatch(
            "release",
            f"release {number} of shard {shard}",
            view,
            field,
            seen=field_text(field, seen),
            expected=field_text(field, expected),
            cause=cause,
            kind=kind,
        )
    )
