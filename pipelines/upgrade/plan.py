"""What an upgrade does with each view, source and output of a stream, said before it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from tidemill.features.contract import SECOND
from tidemill.features.errors import StateError, StateMismatch, TidemillError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.delivery.outgoing import BUNDLE
from tidemill.pipelines.delivery.record import DeliveryRecord
from tidemill.pipelines.io.grown_columns import (
    ColumnChange,
    changed_columns,
    inexact_value,
    refused_columns,
)
from tidemill.pipelines.io.live.live_log import LIVE
from tidemill.pipelines.io.live.live_records import LiveRecords
from tidemill.pipelines.io.log import Log, definitions_of
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun, last_states, request_hash
from tidemill.pipelines.recovery.log_parts import log_of_run
from tidemill.pipelines.recovery.recorded_definitions import changed_definitions
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.telemetry.stream_record import StreamRecord
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.current import current_bundle

STARTS_S: Final = 15.0
"""How long a stream is taken to stop and start again where it was not measured."""


class Fate(Enum):
    """What becomes of something."""

    KEPT = "kept"
    REBUILT = "rebuilt"
    ADDED = "added"
    DROPPED = "dropped"
    CHANGED = "changed"
    REFUSED = "refused"


@dataclass(frozen=True)
class Step:
    """What an upgrade does with one thing.

    Attributes:
        what: The thing, such as ``view by_card``.
        fate: What becomes of it.
        why: Why.
        seconds: About how long that takes, beside the stream that runs; None if it takes none, or
            it is not known.
        rows: How many rows of the log are read for it.
    """

    what: str
    fate: Fate
    why: str
    seconds: float | None = None
    rows: int = 0


@dataclass(frozen=True)
class UpgradePlan:
    """What an upgrade does.

    Attributes:
        run: The record of the stream.
        carried: The views whose definition is the same.
        rebuilt: The views whose states are made from history.
        steps: Everything, in the order in which it is shown.
        restart_s: About how long no value of any view becomes newer, while the stream restarts.
        is_measured: Whether that is what the last start of the stream has taken.
        refusals: Why it cannot be done; empty if it can.
    """

    run: StreamRun
    carried: list[str]
    rebuilt: list[str]
    steps: list[Step]
    restart_s: float
    is_measured: bool
    refusals: list[str] = field(default_factory=list)

    @property
    def changes(self) -> list[Step]:
        """The steps that are not about something that stays."""
        return [step for step in self.steps if step.fate is not Fate.KEPT]

    @property
    def kept(self) -> list[str]:
        """The views that keep their states."""
        return [name for name in self.carried if name not in self.rebuilt]

    def check(self) -> None:
        """Check that it can be done.

        Raises:
            StateMismatch: It cannot.
        """
        if self.refusals:
            raise StateMismatch(self.refusals[0])


def plan_upgrade(config: Configuration) -> UpgradePlan | None:
    """Compare a project with the stream of its root.

    Args:
        config: The configuration; nothing is changed.

    Returns:
        The plan; None if no stream has begun, or it has ended.

    Raises:
        StateError: A record cannot be read.
    """
    current, project = config.current, config.project
    run = StreamRun.read(current.stream_folder)
    if run is None or run.ended:
        return None
    _, handoff = last_states(current)
    refusals: list[str] = []
    if run.views is None or run.shards is None:
        refusals.append(
            f"{current.stream_folder} was begun by a version that did not record its definitions: "
            "start over with `tidemill stream`"
        )
    before = run.views or {}
    carried = [view.name for view in project.views if before.get(view.name) == view.hash]
    same_shards = run.shards == config.shards
    rebuilt = [v.name for v in project.views if v.name not in carried or not same_shards]
    rates = _seconds_per_row(config)
    log = log_of_run(current, run)
    grown = {
        stream.name: changed_columns(log, stream) if stream.name in log.sources() else []
        for stream in definitions_of(project)
    }
    steps = [
        *_views(config, run, handoff, carried, rebuilt, rates, grown),
        *_sources(config, log, handoff, grown, refusals),
        *_request(config, run, refusals),
        *_definitions(config, run),
        *_outputs(config),
        *_others(config, run, refusals),
    ]
    restart = _restart_s(config)
    return UpgradePlan(
        run, carried, rebuilt, steps, restart or STARTS_S, restart is not None, refusals
    )


def _views(
    config: Configuration,
    run: StreamRun,
    handoff: Handoff,
    carried: list[str],
    rebuilt: list[str],
    seconds_per_row: float | None,
    grown: Mapping[str, list[ColumnChange]],
) -> Iterator[Step]:
    before = run.views or {}
    for view in config.project.views:
        what = f"view {view.name}"
        changes = grown[view.stream.name]
        if view.name not in rebuilt:
            others = ", ".join(repr(one.column) for one in changes)
            unread = f"; it does not read {others}" if changes else ""
            yield Step(what, Fate.KEPT, f"definition {view.hash}, as it was{unread}")
            continue
        reads = [repr(one.column) for one in changes if one.column in view.read]
        rows = sum(handoff.positions.get(view.stream.name, ()))
        seconds = None if seconds_per_row is None else rows * seconds_per_row
        if view.name in carried:
            why = f"{run.shards} shards -> {config.shards}"
            yield Step(what, Fate.REBUILT, why, seconds, rows)
        elif view.name in before:
            why = f"definition {before[view.name]} -> {view.hash}"
            why += f"; it reads {', '.join(reads)}" if reads else ""
            yield Step(what, Fate.REBUILT, why, seconds, rows)
        else:
            yield Step(what, Fate.ADDED, "not in the stream that runs", seconds, rows)
    now = {view.name for view in config.project.views}
    for name in before:
        if name not in now:
            why = "no longer in the project; its rows stay until `tidemill clean-store`"
            yield Step(f"view {name}", Fate.DROPPED, why)


def _sources(
    config: Configuration,
    log: Log,
    handoff: Handoff,
    grown: Mapping[str, list[ColumnChange]],
    refusals: list[str],
) -> Iterator[Step]:
    """Yield what becomes of sources: a stream goes on with the log that it has."""
    project = config.project
    definitions = definitions_of(project)
    for stream in definitions:
        what = f"source {stream.name}"
        if stream.name not in handoff.positions or stream.name not in log.sources():
            why = "the log of this stream does not have it"
            refusals.append(
                f"source {stream.name!r} is new to the stream: run `tidemill backfill`, and "
                "`tidemill stream` from its beginning"
            )
            yield Step(what, Fate.REFUSED, why)
            continue
        at = sum(handoff.positions[stream.name])
        if why := refused_columns(log, stream) or inexact_value(log, stream):
            refusals.append(f"source {stream.name!r}: {why}")
            yield Step(what, Fate.REFUSED, why)
        elif changes := grown[stream.name]:
            said = "; ".join(map(str, changes))
            yield Step(what, Fate.CHANGED, f"read on after {at:,} rows: {said}")
        else:
            yield Step(what, Fate.KEPT, f"read on after {at:,} rows")
    names = {stream.name for stream in definitions}
    live = LiveRecords(config.current.folder / LIVE)
    topics = live.topics() if config.is_live and live.exists else {}
    for name in handoff.positions:
        if name in names:
            continue
        # Where the polls of a stream end depends on all of its sources.
        if name in topics or not config.is_live:
            refusals.append(
                f"source {name!r} was read by the stream, and no view reads it any more: keep a "
                "view of it, or start over with `tidemill backfill` and `tidemill stream`"
            )
            yield Step(f"source {name}", Fate.REFUSED, "no view reads it any more")
        else:
            yield Step(f"source {name}", Fate.DROPPED, "no view reads it any more")


def _request(config: Configuration, run: StreamRun, refusals: list[str]) -> Iterator[Step]:
    request = config.project.request
    found = request_hash(request)
    what = f"request {request.name}"
    if run.request in (None, found):
        yield Step(what, Fate.KEPT, "requests that wait are answered by the new version")
        return
    refusals.append(
        f"request {request.name!r}: the stream was begun with definition {run.request}, this is "
        f"{found}: set it back, or run `tidemill backfill`, and then `tidemill stream`"
    )
    yield Step(what, Fate.REFUSED, f"definition {run.request} -> {found}")


def _definitions(config: Configuration, run: StreamRun) -> Iterator[Step]:
    """Yield what else answers are stamped with: inputs, the label, the order of views."""
    if changes := changed_definitions(run, config.project):
        why = f"{'; '.join(changes)}: from the new version on"
        yield Step("definitions", Fate.CHANGED, why)


def _outputs(config: Configuration) -> Iterator[Step]:
    record = DeliveryRecord.read(config.current.stream_folder)
    before = {} if record is None else {name: one.topic for name, one in record.sinks.items()}
    now = {name: sink.topic for name, sink in config.sinks.items()}
    for name in sorted({*before, *now}):
        what = f"output {name}"
        if name not in before:
            why = f"to topic {now[name]!r}, from the new version on"
            yield Step(what, Fate.ADDED, why)
        elif name not in now:
            yield Step(what, Fate.DROPPED, f"no more to topic {before[name]!r}")
        elif before[name] != now[name]:
            yield Step(what, Fate.CHANGED, f"topic {before[name]!r} -> {now[name]!r}")
        else:
            yield Step(what, Fate.KEPT, f"to topic {now[name]!r}")


def _others(config: Configuration, run: StreamRun, refusals: list[str]) -> Iterator[Step]:
    if run.joiners != config.stream.joiners:
        why = f"{run.joiners} -> {config.stream.joiners}: requests that wait are divided anew"
        yield Step("joiners", Fate.CHANGED, why)
    if run.mode != config.stream.mode:
        yield Step("mode", Fate.KEPT, f"{run.mode}: a stream keeps the mode it was begun in")
    is_scored = config.project.model is not None
    if not is_scored:
        if run.scored:
            yield Step("bundle", Fate.DROPPED, "the project has no model: answers have no score")
        return
    try:
        folder = current_bundle(config.root)
        Bundle.load(folder, config.project)
    except TidemillError as error:
        refusals.append(str(error))
        yield Step("bundle", Fate.REFUSED, "train it for these definitions first")
        return
    if run.scored and (before := _scored_by(config)) not in (None, folder.name):
        why = f"{before} -> {folder.name}, the live one, from the new version on"
        yield Step("bundle", Fate.CHANGED, why)
        return
    fate = Fate.KEPT if run.scored else Fate.ADDED
    yield Step("bundle", fate, f"{folder.name}, the live one, scores from the new version on")


def _scored_by(config: Configuration) -> str | None:
    """Return the version of the bundle that the newest predictions name; None without any."""
    folder = OutputFolder(config.current.stream_folder / paths.PREDICTIONS)
    files = folder.files()
    since = files[-1].first if files else 0
    found = [table.column(BUNDLE) for _, table in folder.tables([BUNDLE], since)]
    return str(found[-1][-1]) if found and len(found[-1]) else None


def _seconds_per_row(config: Configuration) -> float | None:
    """Return how long the last backfill of the root took for a row of a view; None if unknown."""
    found: Mapping[str, Any] = read_summary(config.root).get("upgrade", {})
    rows, seconds = found.get("rebuilt_rows"), found.get("rebuild_s")
    if not (rows and seconds):
        found = read_summary(config.root).get("backfill", {})
        read = [one.get("read", 0) for one in dict(found.get("sources", {})).values()]
        rows, seconds = sum(read), found.get("seconds")
    return float(seconds) / float(rows) if rows and seconds else None


def _restart_s(config: Configuration) -> float | None:
    """Return how long the last start of the stream took; None if unknown."""
    try:
        record = StreamRecord.read(config.current.folder)
    except StateError:
        return None
    if record is None or record.ready_us is None:
        return None
    return (record.ready_us - record.began_us) / SECOND
