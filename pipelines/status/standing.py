"""How a stream is, as data."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN, write_instant


class State(enum.StrEnum):
    """Whether a stream runs."""

    NO_BUILD = "no build"
    NEVER = "never started"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    ENDED = "ended"
    FAILED = "failed"
    KILLED = "killed"

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self in (State.STARTING, State.RUNNING)


class Cause(enum.StrEnum):
    """What holds the frontier of a view back."""

    STOPPED = "stopped"
    STARTING = "starting"
    BROKER = "broker"
    TRANSACTION = "transaction"
    BACKLOG = "backlog"
    OPERATORS = "operators"
    QUIET = "quiet"
    DISORDER = "disorder"
    ENDED = "ended"
    REPLAY = "replay"


@dataclass(frozen=True)
class StreamStanding:
    """The stream.

    Attributes:
        state: Whether it runs.
        said: More about that, and what to do, in a sentence.
        run: The id of its run; None if it is not known.
        pid: The number of its process; None likewise.
        host: Its machine; None likewise.
        engine: Its engine; None likewise.
        mode: ``exact`` or ``eager``; None likewise.
        segment: The number of its segment; None likewise.
        began: When the run started, ISO 8601, UTC; None likewise.
        seconds: How long it has run; None if it does not run.
        listen: Where ``/metrics`` is; None if it is not served.
        figures_age_s: How old the figures are; None if there are none.
        savepoint: The number of the last savepoint; None if there is none.
        savepoint_as_of: It holds all rows received before this instant, ISO 8601, UTC.
    """

    state: State
    said: str
    run: str | None = None
    pid: int | None = None
    host: str | None = None
    engine: str | None = None
    mode: str | None = None
    segment: int | None = None
    began: str | None = None
    seconds: float | None = None
    listen: str | None = None
    figures_age_s: float | None = None
    savepoint: int | None = None
    savepoint_as_of: str | None = None


@dataclass(frozen=True)
class PartitionStanding:
    """A partition of a topic.

    Attributes:
        partition: Its number.
        offset: The offset of the next message to read; None if it is not known.
        end: Where the partition ends now; None if the broker does not say.
        lag: How many messages are to be read; None likewise.
        watermark: Before it no row is expected, ISO 8601, UTC; None if it is not known.
        watermark_lag_s: How far that is behind the clock.
        last_message_s: How long ago its last message was read; None if the run has read none.
        is_quiet: Whether its watermark rises because it is silent.
        is_open: Whether an open transaction holds messages back.
    """

    partition: int
    offset: int | None
    end: int | None = None
    lag: int | None = None
    watermark: str | None = None
    watermark_lag_s: float | None = None
    last_message_s: float | None = None
    is_quiet: bool = False
    is_open: bool = False


@dataclass(frozen=True)
class SourceStanding:
    """A source that goes on in a topic.

    Attributes:
        source: Its name.
        topic: Its topic.
        broker: Why the broker does not say where the partitions end; None if it does.
        read: How many rows the run has read; None if there are no figures.
        partitions: The partitions of its topic.
    """

    source: str
    topic: str
    broker: str | None
    read: int | None
    partitions: tuple[PartitionStanding, ...]


@dataclass(frozen=True)
class Wait:
    """What a view waits for.

    Attributes:
        cause: Why.
        said: The same in a sentence.
        source: The source that holds the frontier back; None if it is no source.
        partition: The partition of its topic, or of its log if it has none.
    """

    cause: Cause
    said: str
    source: str | None = None
    partition: int | None = None


@dataclass(frozen=True)
class ViewStanding:
    """A view.

    Attributes:
        view: Its name.
        caught_up: Whether it has all that was sent until shortly ago; None if it is not known.
        frontier: All its events before this instant are applied, ISO 8601, UTC; None if none are.
        stale_s: How far the frontier is behind the clock; None if sources replay the past.
        waits_for: What holds the frontier back.
        waiting_rows: How many rows wait for the frontier.
    """

    view: str
    caught_up: bool | None
    frontier: str | None
    stale_s: float | None
    waits_for: Wait
    waiting_rows: int | None = None


@dataclass(frozen=True)
class Freshness:
    """Quantiles in seconds, since the run started.

    Attributes:
        p50: Half of the values are below it.
        p99: 99 of 100 values are below it.
        count: The number of values.
    """

    p50: float
    p99: float
    count: int


@dataclass(frozen=True)
class ProofStanding:
    """What a proof that follows the stream has found (`tidemill verify --follow`).

    Attributes:
        up_to: What was served from rows received before this instant is proven, ISO 8601, UTC; None
            before the first round.
        at: When its last round ended, ISO 8601, UTC.
        runs: Whether it runs.
        mismatches: Values that were lost by the engine, or that nothing explains.
        values: Values that were recomputed.
        served: Values that were served.
        share: The share of the entities that is recomputed.
        causes: Cause to the number of values that differ.
        behind_s: How far it was behind the clock when its last round ended.
        stops: Why it cannot go on; empty if it can.
        lost_requests: Requests that the stream has held back.
    """

    up_to: str | None
    at: str
    runs: bool
    mismatches: int
    values: int
    served: int
    share: float
    causes: Mapping[str, int]
    behind_s: float
    stops: str
    lost_requests: int = 0


@dataclass(frozen=True)
class SettingsStanding:
    """What the stream that runs has taken over of its file (`tidemill reload`).

    Attributes:
        at: When it has read the file again, ISO 8601, UTC.
        taken: What it has taken over then, each as ``KEY: BEFORE -> NOW``.
        waiting: What differs and waits for a restart, likewise.
        error: Why the file was refused; empty if it was not.
    """

    at: str
    taken: Sequence[str]
    waiting: Sequence[str]
    error: str


@dataclass(frozen=True)
class Standing:
    """How a stream is.

    Attributes:
        project: The name of the project.
        root: The root.
        at: When this was found, ISO 8601, UTC.
        stream: The stream.
        sources: Its sources that go on in topics.
        views: Its views.
        rejected: By source, stage and reason, separated by blanks: records rejected by the run.
        predictions: How many predictions the run has made; None if there are no figures.
        waiting: How many requests wait for answers; None likewise.
        publications: How many rows the run has published; None likewise.
        to_store: From when a value holds until it is in the store; None without values.
        to_prediction: From the time of a request until its prediction; None without values.
        mismatches: What the last `tidemill verify` found; None if this stream was not verified.
        proven: How many values it compared; None likewise.
        proven_at: When it ended, ISO 8601, UTC; None likewise.
        proof: What a proof that follows the stream has found; None if there is none.
        lost: What topics have lost before it was read, and a person has accepted
            (`pipelines.io.live.lost.AcceptedLoss.as_figures`), the oldest first.
        lost_requests: How many requests were due and had no answer when the last `tidemill verify`
            looked; None if it has not.
        settings: What the stream that runs has taken over; None if nobody has asked it to.
    """

    project: str
    root: str
    at: str
    stream: StreamStanding
    sources: tuple[SourceStanding, ...] = ()
    views: tuple[ViewStanding, ...] = ()
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    predictions: int | None = None
    waiting: int | None = None
    publications: int | None = None
    to_store: Freshness | None = None
    to_prediction: Freshness | None = None
    mismatches: int | None = None
    proven: int | None = None
    proven_at: str | None = None
    proof: ProofStanding | None = None
    lost: Sequence[Mapping[str, Any]] = ()
    lost_requests: int | None = None
    settings: SettingsStanding | None = None

    def content(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def instant(time_us: int) -> str:
    """Write an instant as ISO 8601, UTC, in whole seconds.

    >>> instant(1_500_000)
    '1970-01-01T00:00:01Z'
    """
    whole = time_us // SECOND * SECOND
    return write_instant(whole if TIME_MIN < time_us < TIME_MAX else time_us)
