"""Proving a root's stream while it runs: which stream, round after round, until somebody stops it.

Promises: the stream's files are only read, and only what is durable: what came before its last
savepoint. What a round has proven is in the record (`pipelines.run.proof_record`) before it is
said. A proof that is killed goes on from there, and nothing is left out between two proofs. Two
proofs of one root do not run at the same time.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tidemill.features.contract import SECOND, write_instant
from tidemill.features.errors import (
    DamagedFile,
    InputError,
    SequenceError,
    StateError,
    StateMismatch,
)
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import others_that_read
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.steady_clock import wall_clock_us
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.republish import keeps_frontiers
from tidemill.pipelines.run.proof_record import (
    LOCK,
    PROOF,
    Cause,
    Difference,
    ProofRecord,
    Round,
)
from tidemill.pipelines.stream.output_folders import releases_of
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.figures import joined, over_all_labels, quantile
from tidemill.pipelines.telemetry.stream_record import StreamRecord, figures_files
from tidemill.pipelines.verify.definitions_of import configuration_of
from tidemill.pipelines.verify.findings import Findings, excusing
from tidemill.pipelines.verify.follow.differences import AS_SEEN, Differences
from tidemill.pipelines.verify.follow.follower import Follower
from tidemill.pipelines.verify.follow.stream_ends import segment_before
from tidemill.pipelines.verify.lost_requests import LostRequests, Unanswered
from tidemill.pipelines.verify.outputs.extent import complete_segment
from tidemill.serving.files.locks import is_locked, lock
from tidemill.serving.generations.current import Current, find_current
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import OnlineDatabase

_LEAST_SHARE: Final = 0.01
_PATIENCE: Final = 3
"""After so many rounds, each further behind than the one before, the share is lowered."""
_NOTES_KEPT: Final = 12
_IDLE_S: Final = 5.0
"""How often the store and the log are read again while nothing is new; and how often it is looked
for requests that a stream holds back."""


@dataclass(frozen=True)
class FollowOptions:
    """How a stream is followed.

    Attributes:
        share: The share of the entities whose values are recomputed.
        every_s: How often it is looked for something new.
        once: Whether to end when all is proven that is durable.
        until_us: End when all is proven that was received before this instant; None for no end.
        keeps_up: Whether to lower the share when the proof falls further and further behind.
    """

    share: float = 1.0
    every_s: float = 2.0
    once: bool = False
    until_us: int | None = None
    keeps_up: bool = False


@dataclass(frozen=True)
class Step:
    """What a proof has to say.

    Attributes:
        record: What is proven; None before there is a stream.
        round: The round that was done; None if nothing was new.
        found: The differences that it has added to the record, the newest first.
        behind: How many segments have ended that are not proven.
        said: What it waits for, or what has happened; empty if there is nothing to say.
    """

    record: ProofRecord | None
    round: Round | None = None
    behind: int = 0
    said: str = ""
    found: Sequence[Difference] = ()


def follow(
    config: Configuration,
    options: FollowOptions,
    stop: threading.Event,
    clock_us: Callable[[], int] = wall_clock_us,
) -> Iterator[Step]:
    """Prove the stream of a root, and every one that follows it.

    Args:
        config: The configuration.
        options: How.
        stop: Ends the proof after a round.
        clock_us: The machine's clock, in microseconds since 1970.

    Yields:
        A step at the beginning, after each round, and when it waits for something else.

    Raises:
        Locked: Another process proves the stream of this root.
        FileError: The record cannot be written.
        StateVersionError: Another version has written a record.
        StateMismatch: The record of the stream is gone, and its outputs are there.
    """
    proof = _Proof(config, options, clock_us)
    with (
        lock(config.root / PROOF / LOCK, "prove the stream while it runs"),
        closing(proof),
    ):
        others = others_that_read(config.root)
        said: str | None = None
        while not stop.is_set():
            with excusing(others):
                step = proof.step()
            if step.round is not None or step.said != said:
                yield step
            said = step.said
            if step.behind and step.round is not None:
                continue  # more has ended
            if options.once or _is_reached(step, options):
                return
            stop.wait(options.every_s)


def _is_reached(step: Step, options: FollowOptions) -> bool:
    if options.until_us is None or step.record is None:
        return False
    return step.record.up_to_us >= options.until_us


class _Proof:
    """The stream that is followed now."""

    def __init__(
        self, config: Configuration, options: FollowOptions, clock_us: Callable[[], int]
    ) -> None:
        self._config, self._options, self._clock_us = config, options, clock_us
        self._share = options.share
        self._follower: Follower | None = None
        self._current: Current | None = None
        self._database: OnlineDatabase | None = None
        self._lags: list[int] = []
        self._looked_s = 0.0
        self._lost: LostRequests | None = None
        self._lost_of: tuple[Path, str] | None = None
        self._asked_s = float("-inf")

    def close(self) -> None:
        """Close the online store."""
        if self._database is not None:
            self._database.close()

    def step(self) -> Step:
        """Do a round, if something is new."""
        root = self._config.root
        record = ProofRecord.read(root)
        current = find_current(root)
        if current is None:
            return Step(record, said="there is no log yet: it waits for `tidemill backfill`")
        run = StreamRun.read(current.stream_folder) if current.stream else None
        if record is not None and not _is_of(record, current, run):
            former = self._former(record, current)
            if former is not None:
                current, run = former
            elif run is not None:
                self._leave(record)
                record = None
        if run is None:
            if releases_of(current.stream_folder).has_any():
                raise StateMismatch(
                    f"{current.stream_folder} has outputs of a stream, and not its record "
                    "(stream.json): restore it, or run `tidemill stream`"
                )
            return Step(record, said="the stream has not begun: it waits for `tidemill stream`")
        if record is None:
            record = ProofRecord(
                current.generation,
                current.stream,
                run.began,
                share=self._share,
                polls=run.polls,
                segment=segment_before(current, run) + 1,
            )
        return self._follow(current, run, record)

    def _former(self, record: ProofRecord, current: Current) -> tuple[Current, StreamRun] | None:
        """Return the stream of a record, if it has ended segments that are not proven."""
        former = replace(current, generation=record.generation, stream=record.stream)
        former = replace(former, build=former.next_number("build") - 1)
        run = StreamRun.read(former.stream_folder)
        if run is None or run.began != record.began or record.stops:
            return None
        if complete_segment(former.stream_folder, run) < record.segment:
            return None
        if isinstance(configuration_of(self._config, former), str):
            return None  # only the version before could prove the rest of it
        return former, run

    def _leave(self, record: ProofRecord) -> None:
        """Put the record of a former stream away."""
        record.put_away(self._config.root)
        self._follower = None

    def _follow(self, current: Current, run: StreamRun, record: ProofRecord) -> Step:
        root = self._config.root
        config = configuration_of(self._config, current)
        if isinstance(config, str):
            said = f"the stream is {config}: only the code that has made it can prove it"
            return Step(record, said=said)
        if (lost := self._find_lost(config, run, record)) is not None:
            return lost
        if complete_segment(current.stream_folder, run) <= segment_before(current, run):
            return Step(record, said="it waits for the first savepoint of the stream")
        try:
            if self._follower is None or self._current != current:
                self._follower = Follower(config, run, record, self._share, self._store())
                self._current = current
            before = self._follower.record
            with excusing(others_that_read(root)):
                done = self._follower.round()
                if done is None and time.monotonic() - self._looked_s > _IDLE_S:
                    self._looked_s = time.monotonic()
                    done = self._follower.idle()
        except (DamagedFile, InputError, SequenceError, StateError) as error:
            self._follower = None
            return self._stopped(record, str(error))
        follower = self._follower
        is_away = f"not compared: {follower.store_is_away}" if follower.store_is_away else ""
        if done is None:
            return Step(follower.record, said=is_away)
        now_us = self._clock_us()
        is_growing = config.is_live and is_locked(current.stream_lock)
        behind_s = (now_us - done.up_to_us) / SECOND if is_growing else 0.0
        done = replace(done, behind_s=round(behind_s, 3), fresh_s=_fresh_s(current))
        rounds = [*follower.record.rounds[:-1], done]
        follower.record = replace(
            follower.record, rounds=rounds, behind_s=done.behind_s, stops="", at_us=now_us
        )
        said = self._keep_up(follower) or is_away
        follower.record.write(root)
        found = _added(before, follower.record)
        return Step(follower.record, done, follower.behind, said, found)

    def _find_lost(self, config: Configuration, run: StreamRun, record: ProofRecord) -> Step | None:
        """Look for requests that a stream holds back, also one that has kept no savepoint yet.

        Those that a savepoint holds are found by the rounds.
        """
        now_s, current = time.monotonic(), config.current
        if not config.is_live or now_s - self._asked_s < _IDLE_S:
            return None
        self._asked_s = now_s
        if self._follower is not None and self._current == current:
            record = self._follower.record
        try:
            if not LiveLog(current.folder / LIVE, config.project).exists:
                return None
            if self._lost is None or self._lost_of != (current.stream_folder, run.began):
                self._lost = LostRequests(config, run, beyond=True, clock_us=self._clock_us)
                self._lost_of = current.stream_folder, run.began
            found = self._lost.find()
        except (DamagedFile, StateError) as error:
            self._lost = None
            return self._stopped(record, str(error))
        known = set(record.lost_requests)
        lost = [one for one in found.lost if one.id not in known]
        return self._with_lost(lost, record, config) if lost else None

    def _with_lost(
        self, lost: Sequence[Unanswered], record: ProofRecord, config: Configuration
    ) -> Step:
        """Note requests that a stream holds back."""
        now_us, findings = self._clock_us(), Findings()
        for one in lost:
            findings.add(one.as_mismatch(), len(config.project.columns))
        differences = Differences(write_instant(now_us // SECOND * SECOND))
        differences.take(findings)
        done = Round(
            now_us, record.up_to_us, 0.0, record.behind_s, 0, 0, self._share,
            dict(differences.causes),
        )  # fmt: skip
        ids = [*record.lost_requests, *(one.id for one in lost)]
        record = replace(
            record.with_round(done, differences.examples), lost_requests=ids, at_us=now_us
        )
        record.write(config.root)
        if self._follower is not None and self._current == config.current:
            self._follower.record = record
        said = f"{len(lost):,} requests are lost: {lost[0].remedy}"
        return Step(record, done, said=said, found=differences.examples)

    def _store(self) -> OnlineDatabase | None:
        if self._database is None and keeps_frontiers(self._config.online_store):
            self._database = open_database(self._config.online_store)
        return self._database

    def _stopped(self, record: ProofRecord, why: str) -> Step:
        """Note a fault because of which the proof cannot go on; it is tried again."""
        if record.stops == why:
            return Step(record, said=f"it cannot go on: {why}")
        now_us = self._clock_us()
        at = write_instant(now_us // SECOND * SECOND)
        fault = Difference(
            at, Cause.UNEXPLAINED, AS_SEEN, "log", "", served="damaged",
            recomputed="what was written", why=why,
        )  # fmt: skip
        done = Round(
            now_us, record.up_to_us, 0.0, record.behind_s, 0, 0, self._share,
            {Cause.UNEXPLAINED: 1},
        )  # fmt: skip
        record = replace(record.with_round(done, [fault]), stops=why, at_us=now_us)
        record.write(self._config.root)
        return Step(record, done, said=f"it cannot go on: {why}", found=[fault])

    def _keep_up(self, follower: Follower) -> str:
        """Lower the share if each of the last rounds was further behind; say what is so."""
        self._lags = [*self._lags[-_PATIENCE:], follower.behind]
        falls = len(self._lags) > _PATIENCE and all(
            one < next_one for one, next_one in zip(self._lags, self._lags[1:], strict=False)
        )
        if not falls:
            return ""
        behind = f"{follower.behind} segments have ended that are not proven, and more each round"
        if not self._options.keeps_up or self._share <= _LEAST_SHARE:
            return f"{behind}: `--share`, or `--keep-up`, makes the proof faster"
        self._share = max(self._share / 2, _LEAST_SHARE)
        self._lags = []
        follower.narrow(self._share)
        said = f"{behind}: from now on a share of {self._share:g} of the entities is proven"
        at = write_instant(self._clock_us() // SECOND * SECOND)
        notes = [*follower.record.notes, f"{at}: {said}"][-_NOTES_KEPT:]
        follower.record = dataclasses.replace(follower.record, share=self._share, notes=notes)
        return said


def _added(before: ProofRecord, after: ProofRecord) -> list[Difference]:
    known = set(map(id, before.differences))
    return [one for one in after.differences if id(one) not in known]


def _is_of(record: ProofRecord, current: Current, run: StreamRun | None) -> bool:
    if run is None:
        return False
    return (record.generation, record.stream, record.began) == (
        current.generation,
        current.stream,
        run.began,
    )


def _fresh_s(current: Current) -> float | None:
    """Return how long after they held half of the values were in the store; None if not known."""
    try:
        record = StreamRecord.read(current.folder)
    except StateError:
        return None
    found = [] if record is None else figures_files(current.folder).read(record.run)
    whole = over_all_labels(joined(found), metrics.TO_STORE) if found else None
    half = None if whole is None else quantile(metrics.TO_STORE, whole, 0.5)
    return None if half is None else round(half, 3)
