"""What a view waits for: which partition holds its frontier back, and why.

In exact mode the frontier of a view is the least watermark of the partitions that it reads, those
of its requests included. So one partition holds it back, and the reader knows why that partition's
watermark is where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN, format_duration
from tidemill.pipelines.status.standing import Cause, PartitionStanding, State, Wait

SLACK_US: Final = 5 * SECOND
"""How much longer than it must a view may be behind the clock and still count as caught up."""
_BEHIND_US: Final = SECOND
"""How far an operator may be behind the reader before it is what a view waits for."""


@dataclass(frozen=True)
class Declared:
    """What a source declares about time.

    Attributes:
        disorder_us: Its out-of-orderness.
        quiet_us: How long a message may be on its way to the broker; 0 without a topic.
        is_wall: Whether a silent partition's time goes on with the machine's clock.
    """

    disorder_us: int
    quiet_us: int = 0
    is_wall: bool = True

    @property
    def behind_us(self) -> int:
        """How far behind the clock a source must be at least."""
        return self.disorder_us + self.quiet_us


@dataclass(frozen=True)
class Place:
    """A partition that a view reads.

    Attributes:
        source: Its source.
        partition: The partition of the topic; of the log, if it is of files.
        watermark_us: Its watermark, as far as the operator has taken it.
        read_us: Its watermark, as far as the reader has; None if it is of files.
        standing: Where it is in its topic; None if it is of files.
    """

    source: str
    partition: int
    watermark_us: int
    read_us: int | None = None
    standing: PartitionStanding | None = None


def slowest(places: Sequence[Place]) -> Place | None:
    """Return the partition with the least watermark; None if all have ended, or there are none."""
    place = min(places, key=lambda one: one.watermark_us, default=None)
    return None if place is None or place.watermark_us >= TIME_MAX else place


def waits_for(
    state: State,
    places: Sequence[Place],
    declared: Mapping[str, Declared],
    *,
    is_caught_up: bool | None,
    away: Mapping[str, str],
    polls_ahead: int,
) -> Wait:
    """Say what a view waits for.

    Args:
        state: Whether the stream runs.
        places: The partitions that its slowest shard reads; none before it has begun.
        declared: Source to what it declares.
        is_caught_up: Whether it is as far as it can be.
        away: Source to why its broker does not answer.
        polls_ahead: How many polls are read that no operator has taken.
    """
    if not state.runs:
        return Wait(Cause.STOPPED, "the stream, which does not run")
    if not places:
        return Wait(Cause.STARTING, "the stream, which is starting")
    place = slowest(places)
    if place is None:
        return Wait(Cause.ENDED, "nothing: all its partitions have ended")
    name = f"{place.source}/{place.partition}"

    def wait(cause: Cause, said: str) -> Wait:
        return Wait(cause, f"{name}: {said}", place.source, place.partition)

    standing, source = place.standing, declared[place.source]
    if standing is None:
        return wait(Cause.REPLAY, "its rows are being replayed")
    if is_caught_up:
        return _as_it_must(name, place, standing, source)
    if place.source in away:
        return wait(Cause.BROKER, f"its broker does not answer ({away[place.source]})")
    if (place.read_us or TIME_MIN) - place.watermark_us > _BEHIND_US:
        polls = f"{polls_ahead:,} poll{'s' * (polls_ahead != 1)}"
        return wait(Cause.OPERATORS, f"read, and not computed yet ({polls} ahead)")
    if standing.is_open:
        return wait(Cause.TRANSACTION, "an open transaction holds its messages back")
    if standing.lag:
        messages = f"{standing.lag:,} message{'s' * (standing.lag != 1)}"
        return wait(Cause.BACKLOG, f"{messages} to read")
    return _as_it_must(name, place, standing, source)


def _as_it_must(name: str, place: Place, standing: PartitionStanding, source: Declared) -> Wait:
    """Say why a partition's watermark is where it is, though all of it is read."""
    disorder = _shown(source.disorder_us)
    cause = Cause.QUIET
    if standing.is_quiet and source.is_wall:
        quiet = _shown(source.quiet_us)
        said = f"silent, so its time is {quiet} (quiet) and {disorder} (disorder) behind the clock"
    elif standing.is_quiet:
        said = "silent; its time follows the newest message of any partition"
    elif place.watermark_us <= TIME_MIN:
        said = "it has had no message yet"
    else:
        cause, said = Cause.DISORDER, f"its newest message; {disorder} of disorder are awaited"
    return Wait(cause, f"{name}: {said}", place.source, place.partition)


def _shown(duration_us: int) -> str:
    return format_duration(duration_us) if duration_us else "0s"


def is_caught_up(
    frontier_us: int | None,
    places: Sequence[Place],
    declared: Mapping[str, Declared],
    now_us: int,
) -> bool | None:
    """Tell whether a view has all that was sent until shortly ago.

    With the machine's clock: its frontier is not further behind than its sources must be, and
    `SLACK_US`. With the messages' clock: all messages are read and computed.

    Args:
        frontier_us: The frontier of the slowest shard; None if there is none yet.
        places: The partitions that this shard reads.
        declared: Source to what it declares.
        now_us: The machine's clock.

    Returns:
        None if it cannot be told.
    """
    if not places:
        return None
    if all(one.watermark_us >= TIME_MAX for one in places):
        return True
    live = [one for one in places if one.standing is not None]
    if not live or frontier_us is None:
        return False
    of_sources = [declared[one.source] for one in live]
    if all(one.is_wall for one in of_sources):
        behind_us = max(one.behind_us for one in of_sources)
        return now_us - frontier_us <= behind_us + SLACK_US
    lags = [one.standing.lag for one in live if one.standing is not None]
    if any(lag is None for lag in lags):
        return None
    return not any(lags) and all(one.read_us == one.watermark_us for one in live)
