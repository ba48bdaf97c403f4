"""Finding out how a stream is: from its records, its figures, its live log and the brokers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN
from tidemill.features.definitions import EventStream, Request
from tidemill.features.errors import StateError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import closed_by
from tidemill.pipelines.ingest.build_topics import read_topics
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.lost import offset_of
from tidemill.pipelines.io.live.set_aside import losses_of
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.proof_record import LOCK, PROOF, ProofRecord
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.status.ask_brokers import Answer, ask_brokers
from tidemill.pipelines.status.standing import (
    Freshness,
    PartitionStanding,
    ProofStanding,
    SettingsStanding,
    SourceStanding,
    Standing,
    State,
    StreamStanding,
    ViewStanding,
    instant,
)
from tidemill.pipelines.status.waits import Declared, Place, is_caught_up, waits_for
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.facts import source_fact, view_fact
from tidemill.pipelines.telemetry.figures import Snapshot, joined, over_all_labels, quantile
from tidemill.pipelines.telemetry.metrics import Metric
from tidemill.pipelines.telemetry.settings_record import SettingsRecord
from tidemill.pipelines.telemetry.stream_record import StreamRecord, figures_files
from tidemill.serving.files.locks import is_locked
from tidemill.serving.generations.current import Current, find_current

_RESUME = "resume with `tidemill stream --resume`"
_BEGIN = "start it with `tidemill stream`"


@dataclass(frozen=True)
class _Seen:
    """What the records of a generation say.

    Attributes:
        current: Its folders.
        record: The record of the stream that runs or ran last; None if there is none.
        figures: The figures of this run; None if there are none.
    """

    current: Current
    record: StreamRecord | None
    figures: Snapshot | None


def collect(
    config: Configuration,
    ask: Callable[..., dict[str, Answer]] = ask_brokers,
    clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
) -> Standing:
    """Find out how the stream of a root is.

    Args:
        config: The configuration.
        ask: Asks the brokers where topics end.
        clock_us: The machine's clock, in microseconds since 1970.

    Raises:
        StateVersionError: Another version wrote the root.
        DamagedState: A record of the root is damaged.
        DamagedFile: The summary is damaged.
    """
    current = find_current(config.root)
    at = instant(clock_us())
    if current is None:
        nothing = StreamStanding(State.NO_BUILD, "there is no log yet: run `tidemill backfill`")
        return Standing(config.project.name, str(config.root), at, nothing)
    topics = {name: one.kafka for name, one in config.sources.items() if one.kafka is not None}
    answers = ask(topics) if topics else {}
    record = _record(current)
    of_run = [] if record is None else figures_files(current.folder).read(record.run)
    seen = _Seen(current, record, joined(of_run) if of_run else None)
    now_us = clock_us()
    stream = _stream(seen, now_us)
    sources = _sources(config, seen, stream.state, answers, now_us)
    proof = read_summary(config.root).get("verify", {})
    found = seen.figures
    # How old replayed rows are says nothing of the stream.
    fresh = found if config.is_live else None
    return Standing(
        config.project.name,
        str(config.root),
        at,
        stream,
        sources,
        tuple(_views(config, seen, stream.state, sources, now_us)),
        {} if found is None else _by_labels(found, metrics.ROWS_REJECTED),
        _total(found, metrics.PREDICTIONS),
        _waiting(found),
        _total(found, metrics.PUBLICATIONS),
        _freshness(fresh, metrics.TO_STORE),
        _freshness(fresh, metrics.TO_PREDICTION),
        proof.get("mismatches"),
        proof.get("values"),
        None if (ended := proof.get("ended_us")) is None else instant(ended),
        _proof(config.root),
        _lost(config, current, stream.state),
        proof.get("lost_requests"),
        _settings(current, record, stream.state),
    )


def _settings(
    current: Current, record: StreamRecord | None, state: State
) -> SettingsStanding | None:
    """Return what the stream that runs has taken over; None if it was not asked to."""
    try:
        found = SettingsRecord.read(current.folder)
    except StateError:
        return None  # `tidemill reload` says what is wrong with it
    if found is None or record is None or found.run != record.run or not state.runs:
        return None
    return SettingsStanding(instant(found.at_us), found.taken, found.waiting, found.error)


def _lost(config: Configuration, current: Current, state: State) -> list[dict[str, Any]]:
    """Return what topics have lost and a person has accepted; of a stream that runs, as sealed."""
    live = LiveLog(current.folder / LIVE, config.project)
    return [one.as_figures() for one in losses_of(live, only_sealed=state.runs)]


def _proof(root: Path) -> ProofStanding | None:
    """Return what a proof that follows the stream has found; None without a readable record."""
    try:
        record = ProofRecord.read(root)
    except StateError:
        return None  # `tidemill verify --follow` says what is wrong with it
    if record is None:
        return None
    return ProofStanding(
        instant(record.up_to_us) if record.up_to_us else None,
        instant(record.at_us),
        is_locked(root / PROOF / LOCK),
        record.mismatches,
        record.values,
        record.served,
        record.share,
        record.causes,
        record.behind_s,
        record.stops,
        len(record.lost_requests),
    )


def _record(current: Current) -> StreamRecord | None:
    try:
        return StreamRecord.read(current.folder)
    except StateError:
        return None  # the next stream writes it again; what follows is known without it


def _stream(seen: _Seen, now_us: int) -> StreamStanding:
    current, record = seen.current, seen.record
    run = StreamRun.read(current.stream_folder)
    savepoint = Savepoint.read(current.stream_folder)
    state, said = _state(seen, run, savepoint)
    at_s = None if seen.figures is None else seen.figures.at_s
    of_savepoint = None if savepoint is None else instant(savepoint.as_of_us)
    number = None if savepoint is None else savepoint.segment
    if record is None:
        mode = None if run is None else run.mode
        return StreamStanding(
            state, said, mode=mode, savepoint=number, savepoint_as_of=of_savepoint
        )
    return StreamStanding(
        state,
        said,
        record.run,
        record.pid,
        record.host,
        record.engine,
        record.mode or None,
        record.segment or None,
        instant(record.began_us),
        (now_us - record.began_us) / SECOND if state.runs else None,
        record.listen,
        None if at_s is None else max(now_us / SECOND - at_s, 0.0),
        number,
        of_savepoint,
    )


def _state(seen: _Seen, run: StreamRun | None, savepoint: Savepoint | None) -> tuple[State, str]:
    record = seen.record
    if is_locked(seen.current.stream_lock):
        if record is None or record.ended_us is not None or not record.segment:
            return State.STARTING, "it starts: it loads states, or fills the online store"
        return State.RUNNING, "it runs"
    current = seen.current
    number = closed_by(current.root, current.generation, current.stream_folder.name)
    if number is not None:
        why = f"an entity was forgotten (record {number:05d}) of a stream in eager mode"
        return State.ENDED, f"{why}; `tidemill stream --resume` says how to go on"
    if run is not None and run.ended:
        return State.ENDED, "it has come to its end; `tidemill stream` starts over"
    if record is None and run is None:
        return State.NEVER, f"no stream has run yet: {_BEGIN}"
    kept = "no savepoint" if savepoint is None else f"last savepoint {savepoint.segment}"
    if run is None:
        return State.STOPPED, f"it has not begun: {_BEGIN}"
    if record is None:
        return State.STOPPED, f"it does not run; {kept}; {_RESUME}"
    if record.error is not None:
        what = f"{record.error['class']}: {record.error['text']}"
        return State.FAILED, f"it ended with an error; {kept}; {_RESUME}. {what}"
    if record.ended_us is not None:
        return State.STOPPED, f"it stopped at {instant(record.ended_us)}; {kept}; {_RESUME}"
    last = "" if seen.figures is None else f" at about {instant(int(seen.figures.at_s * SECOND))}"
    return State.KILLED, f"not running: it was killed{last}; {kept}; {_RESUME}"


def _sources(
    config: Configuration,
    seen: _Seen,
    state: State,
    answers: Mapping[str, Answer],
    now_us: int,
) -> tuple[SourceStanding, ...]:
    found = []
    is_reported = state is State.RUNNING and any(_numbers(seen, name) for name in answers)
    offsets = {} if is_reported else _next_offsets(config, seen.current)
    for name, answer in sorted(answers.items()):
        topic = config.sources[name].kafka
        assert topic is not None
        ends = answer.ends or {}
        of_log = offsets.get(name, ())
        known = {n: _fact(seen.figures, source_fact(name, n)) for n in _numbers(seen, name)}
        numbers = sorted({*ends, *known, *range(len(of_log))})
        partitions = []
        for n in numbers:
            fact = known.get(n)
            offset = (
                offset_of(of_log[n])
                if n < len(of_log)
                else None
                if fact is None
                else fact["offset"]
            )
            end = ends.get(n)
            lag = None if end is None or offset is None else max(end.high - offset, 0)
            watermark_us = TIME_MIN if fact is None else int(fact["watermark_us"])
            is_known = TIME_MIN < watermark_us < TIME_MAX
            last_s = None if fact is None else fact["last_message_s"]
            partitions.append(
                PartitionStanding(
                    n,
                    offset,
                    None if end is None else end.high,
                    lag,
                    instant(watermark_us) if is_known else None,
                    (now_us - watermark_us) / SECOND if is_known else None,
                    None if last_s is None else max(now_us / SECOND - last_s, 0.0),
                    bool(fact and fact["is_quiet"]),
                    end is not None and offset is not None and end.stable <= offset < end.high,
                )
            )
        read = None if seen.figures is None else _total(seen.figures, metrics.ROWS_READ, name)
        found.append(SourceStanding(name, topic.topic, answer.why, read, tuple(partitions)))
    return tuple(found)


def _numbers(seen: _Seen, source: str) -> list[int]:
    """Return the partitions of a source that the run has reported."""
    if seen.figures is None:
        return []
    start = source_fact(source, 0).removesuffix("0")
    names = (name.removeprefix(start) for name in seen.figures.facts if name.startswith(start))
    return sorted(int(number) for number in names if number.isdigit())


def _next_offsets(config: Configuration, current: Current) -> Mapping[str, Sequence[int]]:
    """Return where a stream that does not run would go on, or begin, by source."""
    live = LiveLog(current.folder / LIVE, config.project)
    if not live.exists:
        return {name: topic.offsets for name, topic in read_topics(current.build_folder).items()}
    last = live.polls.last()
    return live.sealed().offsets if last is None else last.offsets


def _views(
    config: Configuration,
    seen: _Seen,
    state: State,
    sources: Sequence[SourceStanding],
    now_us: int,
) -> list[ViewStanding]:
    declared = {name: _declared(config, config.project.definition(name)) for name in config.sources}
    away = {one.source: one.broker for one in sources if one.broker is not None}
    is_wall = config.is_live and all(one.is_wall for one in declared.values())
    ahead = 0
    if seen.figures is not None:
        gauges = seen.figures.gauges.get((metrics.POLLS_AHEAD.name, (), ""))
        ahead = 0 if gauges is None else int(gauges.value)
    found = []
    for view in config.project.views:
        shards = [_fact(seen.figures, view_fact(view.name, n)) for n in range(config.shards)]
        known = [one for one in shards if one is not None]
        slow = min(known, key=lambda one: one["frontier_us"]) if known else None
        names = view.stream.name, config.project.request.name
        places = [] if slow is None else _places(slow, names, seen.figures, sources)
        frontier_us = None if slow is None else int(slow["frontier_us"])
        is_well = is_caught_up(frontier_us, places, declared, now_us)
        if state is not State.ENDED and not state.runs:
            is_well = None if state in (State.NO_BUILD, State.NEVER) else False
        wait = waits_for(
            state, places, declared, is_caught_up=is_well, away=away, polls_ahead=ahead
        )
        is_known = frontier_us is not None and TIME_MIN < frontier_us < TIME_MAX
        behind = None if frontier_us is None else (now_us - frontier_us) / SECOND
        waiting = sum(one["waiting_events"] + one["waiting_requests"] for one in known)
        found.append(
            ViewStanding(
                view.name,
                is_well,
                None if frontier_us is None else instant(frontier_us),
                behind if is_wall and is_known else None,
                wait,
                waiting if known else None,
            )
        )
    return found


def _declared(config: Configuration, definition: EventStream | Request) -> Declared:
    topic = config.sources[definition.name].kafka
    if topic is None:
        return Declared(definition.out_of_orderness_us)
    return Declared(definition.out_of_orderness_us, topic.quiet_us, topic.clock != "messages")


def _places(
    shard: Mapping[str, Any],
    names: tuple[str, str],
    figures: Snapshot | None,
    sources: Sequence[SourceStanding],
) -> list[Place]:
    """Return the partitions that a shard reads: those of its events, then those of requests."""
    standings = {(one.source, part.partition): part for one in sources for part in one.partitions}
    of_events = shard["event_partitions"]
    found = []
    for index, watermark_us in enumerate(shard["watermarks_us"]):
        is_event = index < of_events
        source, number = names[not is_event], index if is_event else index - of_events
        # Of several partitions of a topic that the log has as one, the last in time holds it back.
        of_topic = [
            (fact["watermark_us"], part)
            for name, part in standings
            if name == source
            and (fact := _fact(figures, source_fact(source, part))) is not None
            and fact["log_partition"] == number
        ]
        if not of_topic:
            found.append(Place(source, number, watermark_us))
            continue
        read_us, part = min(of_topic)
        found.append(Place(source, part, watermark_us, read_us, standings[source, part]))
    return found


def _fact(figures: Snapshot | None, name: str) -> Mapping[str, Any] | None:
    fact = None if figures is None else figures.facts.get(name)
    return None if fact is None else fact.content


def _total(figures: Snapshot | None, metric: Metric, label: str | None = None) -> int | None:
    if figures is None:
        return None
    return int(
        sum(
            count
            for (name, labels), count in figures.counters.items()
            if name == metric.name and label in (None, *labels[:1])
        )
    )


def _waiting(figures: Snapshot | None) -> int | None:
    gauges = {} if figures is None else figures.gauges
    # Each joiner has its own.
    found = [
        one.value for (name, *_), one in gauges.items() if name == metrics.WAITING_REQUESTS.name
    ]
    return int(sum(found)) if found else None


def _by_labels(figures: Snapshot, metric: Metric) -> dict[str, int]:
    found = {
        " ".join(labels): int(count)
        for (name, labels), count in figures.counters.items()
        if name == metric.name
    }
    return dict(sorted(found.items(), key=lambda one: (-one[1], one[0])))


def _freshness(figures: Snapshot | None, metric: Metric) -> Freshness | None:
    """Return the quantiles of a histogram, over all its labels."""
    if figures is None:
        return None
    whole = over_all_labels(figures, metric)
    if whole is None:
        return None
    half, most = (quantile(metric, whole, q) for q in (0.5, 0.99))
    if half is None or most is None:
        return None
    return Freshness(round(half, 3), round(most, 3), sum(whole.counts))
