"""The proof of one stream, round after round: each costs by what has become durable since.

A round takes the segments that have ended since the last one. It reads their releases, answers and
publications, and the rows of the log that came with their polls. Each value is recomputed in batch
from the rows of its entity, which are kept as far back as a window reaches; the operators of the
stream are not used. All windows of a project end, so no state is carried from round to round.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN, Int64Array, write_instant
from tidemill.features.errors import StateMismatch, StoreError
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.log import POSITION, forgotten_rows, one_batch
from tidemill.pipelines.recovery.handoff import StreamRun, cut_digests
from tidemill.pipelines.recovery.log_parts import source_partitions, stream_log
from tidemill.pipelines.recovery.stream_beginning import carried_joiners
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.run.proof_record import Cause, Difference, ProofRecord, Round, added
from tidemill.pipelines.stream.answer_parts import partition_of
from tidemill.pipelines.verify.compare_lost import LossCheck
from tidemill.pipelines.verify.findings import EMPTIED, LOST, Findings, Mismatch
from tidemill.pipelines.verify.follow.differences import AS_COMPLETE, Differences, request_place
from tidemill.pipelines.verify.follow.kept_answers import KeptAnswers
from tidemill.pipelines.verify.follow.online_rows import OnlineRows
from tidemill.pipelines.verify.follow.release_chain import (
    Place,
    Reached,
    check_releases,
)
from tidemill.pipelines.verify.follow.requests_served import RequestsServed
from tidemill.pipelines.verify.follow.segment_outputs import SegmentOutputs
from tidemill.pipelines.verify.follow.stream_ends import StreamEnds, beginning, segment_before
from tidemill.pipelines.verify.follow.view_rows import ViewRows, lateness_us
from tidemill.pipelines.verify.follow.view_values import Compared, ViewValues
from tidemill.pipelines.verify.follow.waiting_requests import (
    Waiting,
    WaitingRequests,
)
from tidemill.pipelines.verify.outputs.compare_scores import PredictionCheck
from tidemill.pipelines.verify.outputs.extent import complete_segment
from tidemill.pipelines.verify.release_evidence import Evidence, evidence_of
from tidemill.pipelines.verify.served import (
    Served,
    check_requests,
)
from tidemill.serving.online.database import OnlineDatabase

_ROWS_AT_ONCE: Final = 200_000
"""A round takes no further segment once it has so many rows of the log."""
_STORE_KEYS: Final = 2_000
"""So many entities of each view are read from the online store in a round."""


class _Begun(NamedTuple):
    """How far all had come before a round.

    Attributes:
        segment: The first segment of the round.
        reached: How far each operator had come.
        waiting: The requests that waited.
    """

    segment: int
    reached: dict[Place, Reached]
    waiting: Waiting


class Follower:
    """Proves a stream from its beginning, or from where its record says.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.
        record: What is proven of it.
        share: The share of the entities to recompute.
        database: The online store; None if its rows are not compared.

    Attributes:
        record: What is proven now.
        share: The share.
        behind: How many segments have ended that are not proven.
        store_is_away: Why the online store could not be read; empty if it could.

    Raises:
        StateMismatch: The log is not the one that was proven.
        DamagedFile: A row of the log is damaged.
    """

    def __init__(
        self,
        config: Configuration,
        run: StreamRun,
        record: ProofRecord,
        share: float,
        database: OnlineDatabase | None,
    ) -> None:
        self._config, self._run, self.record, self.share = config, run, record, share
        self._project, self._current = config.project, config.current
        self._outputs = SegmentOutputs(self._current.stream_folder, self._project)
        self._ends = StreamEnds(config, run)
        self._base = evidence_of(config, run, {})
        self._requests = RequestsServed(
            self._project,
            config.shards,
            self._current.stream_folder,
            is_exact=self._base.exact,
        )
        self._releases: dict[tuple[str, int, int], tuple[int, tuple[int, ...]]] = {}
        self._partitions = source_partitions(
            stream_log(self._current, self._project), self._project
        )
        self._kept = KeptAnswers(self._project, self._partitions)
        self._online = None
        if database is not None:
            self._online = OnlineRows(self._project, self._current, run, database)
        self._of_store = Findings().forget_details(
            (one.what, one.id, one.view, one.feature) for one in record.differences
        )
        self._begun: list[_Begun] = []
        self._sweep = {view.name: -1 for view in self._project.views}
        self.behind = 0
        self.store_is_away = ""
        live = LiveLog(self._current.folder / LIVE, self._project)
        self._lost = LossCheck(live) if live.exists else None
        self._check_log()
        self._start()

    # --- where it begins -------------------------------------------------------------------------

    def _check_log(self) -> None:
        """Check that the log is the one whose first rows were proven."""
        if not self.record.digests:
            return
        log, reread = stream_log(self._current, self._project), self.record.reread
        for name, digest in self.record.digests.items():
            if log.prefix_digest(name, reread["proven"][name]) != digest:
                raise StateMismatch(
                    f"the log of {name!r} below positions {reread['proven'][name]} has other rows "
                    "than were proven: the log was replaced, or the record of the proof is of "
                    "another root"
                )

    def _start(self) -> None:
        """Read the rows that windows can hold; then read again what was proven, if need be."""
        reread = self.record.reread
        self._reached = beginning(self._config, self._run, self._base)
        self._segment = segment_before(self._current, self._run) + 1
        if reread:
            self._segment = int(reread["segment"])
            self._reached = {
                (view, shard): Reached(
                    number, frontier, tuple(positions), bytes.fromhex(mark), tuple(applied)
                )
                for view, shard, number, frontier, positions, mark, applied in reread["reached"]
            }
        upgrade = UpgradeRecord.of(self._run, self._current.stream_folder)
        for one in () if upgrade is None else upgrade.releases:
            if one["view"] in {view.name for view in self._project.views}:
                events = self._partitions[self._project.view(one["view"]).stream.name]
                evidence = one["frontier_us"], tuple(one["positions"][:events])
                self._releases[one["view"], one["shard"], one["number"]] = evidence
        for (view, shard), at in self._reached.items():
            events = self._partitions[self._project.view(view).stream.name]
            self._releases[view, shard, at.number] = at.frontier_us, at.positions[:events]
        self._rows = ViewRows(self._project, self._partitions, self.share)
        positions = self._positions()
        frontiers = self._frontiers()
        self._rows.load(stream_log(self._current, self._project), positions, frontiers)
        request = self._project.request
        waiting = [tuple(one) for one in reread.get("waiting", self._carried())]
        self._asked = WaitingRequests(
            request, positions[request.name], waiting, stream_log(self._current, self._project)
        )
        while self._segment < self.record.segment:
            if self._round(is_counted=False) is None:
                break
        if self._polls != self.record.polls:
            raise StateMismatch(
                f"{self.record.polls} polls of the stream were proven, and its outputs up to "
                f"segment {self.record.segment - 1} have {self._polls}: they are of another stream"
            )

    def _carried(self) -> Waiting:
        """Return the requests that a stream of another version had not answered."""
        if self._run.upgraded_from is None:
            return []
        found: list[tuple[int, int, int]] = []
        for joiner in carried_joiners(self._config, self._run).all:
            # A group came with one poll, before all polls of this stream.
            for poll, (group, pending) in enumerate(sorted(joiner.pending.items())):
                positions = _words(pa.Table.from_batches([pending.rows]), POSITION).tolist()
                found += [(partition_of(group), position, poll) for position in positions]
        return found

    @property
    def _polls(self) -> int:
        return max(at.number for at in self._reached.values())

    def _positions(self) -> dict[str, list[int]]:
        """Return the positions that all releases have reached, by source."""
        found: dict[str, Int64Array] = {}
        for (name, _), at in self._reached.items():
            view = self._project.view(name)
            events = self._partitions[view.stream.name]
            for source, places in (
                (view.stream.name, at.positions[:events]),
                (self._project.request.name, at.positions[events:]),
            ):
                now = np.array(places, np.int64)
                found[source] = np.maximum(found.get(source, now), now)
        return {source: places.tolist() for source, places in found.items()}

    def _frontiers(self) -> dict[str, int]:
        """Return the least frontier of each view."""
        found: dict[str, int] = {}
        for (view, _), at in self._reached.items():
            found[view] = min(found.get(view, at.frontier_us), at.frontier_us)
        return found

    # --- a round ---------------------------------------------------------------------------------

    def round(self) -> Round | None:
        """Prove what has become durable since the last round; None if nothing has.

        Raises:
            DamagedFile: A row of the log, or a file of outputs, is damaged.
            StateError: A record is damaged.
        """
        return self._round(is_counted=True)

    def _round(self, *, is_counted: bool) -> Round | None:
        began = time.monotonic()
        complete = complete_segment(self._current.stream_folder, self._run_now())
        self.behind = max(complete - self._segment + 1, 0)
        # What was proven is read again, and nothing more.
        last = complete if is_counted else min(self.record.segment - 1, complete)
        segments, releases = self._next_segments(last)
        if not segments:
            return None
        differences = _differences()
        findings, before = Findings(), dict(self._reached)
        self._begun.append(_Begun(self._segment, before, self._asked.places()))
        since = self._frontiers()
        wanted = {} if self._online is None else {one.mark for one in self._online.pending}
        known = self._take_releases(releases, set(wanted), findings)
        positions, log = self._positions(), stream_log(self._current, self._project)
        came = self._rows.read(log, positions)
        counts, served = self._compare(segments, releases, positions, differences, findings)
        values = ViewValues(self._config, self._rows, self._evidence(), self.share)
        for view in self._project.views:
            late = came[view.name]
            if len(late):
                times = _words(late, view.stream.event_time)
                late = late.filter(pa.array(times < since[view.name]))
                oldest = since[view.name] - lateness_us(self._project)
                later = int((times < oldest).sum()) if since[view.name] > TIME_MIN else 0
                counts["events_later_than_kept"] = counts.get("events_later_than_kept", 0) + later
            again = self._kept.compare_again(
                view, late, self._rows.of, values.evidence, differences
            )
            counts["compared_again"] = counts.get("compared_again", 0) + again
        if served is not None:
            self._kept.add(served)
        self.behind = complete - segments[-1]
        if self._online is not None and is_counted:
            counts |= self._compare_store(known, differences, findings)
        if is_counted:
            self._check_lost(findings)
        differences.take(findings)
        counts["late_values"] = differences.late_values
        self._segment = segments[-1] + 1
        self._forget()
        done = Round(
            at_us=time.time_ns() // 1_000,
            up_to_us=self._ends.up_to_us(self._polls, min(self._frontiers().values())),
            seconds=round(time.monotonic() - began, 3),
            behind_s=0.0,
            served=counts.pop("served", 0),
            values=counts.pop("values", 0),
            share=self.share,
            causes={name: count for name, count in differences.causes.items() if count},
        )
        if is_counted:
            self._keep(done, differences.examples, counts, log, positions)
        return done

    def _check_lost(self, findings: Findings) -> None:
        """Check that the log passes over messages only where that was accepted."""
        if self._lost is None:
            return
        known = ((one.what, one.id, one.view, one.feature) for one in self.record.differences)
        found = Findings().forget_details(known)
        self._lost.check(found)
        findings.merge(found)
        lost = [one.as_figures() for one in self._lost.losses]
        self.record = dataclasses.replace(self.record, lost=lost)

    def _run_now(self) -> StreamRun:
        """Return the record of the stream, which says when it has ended."""
        return StreamRun.read(self._current.stream_folder) or self._run

    def _next_segments(self, last: int) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the segments of the next round, with their releases.

        Args:
            last: The last segment that may be taken.
        """
        segments: list[int] = []
        releases: list[dict[str, Any]] = []
        begin = sum(map(sum, self._positions().values()))
        for number in range(self._segment, last + 1):
            found = self._outputs.releases(number)
            segments.append(number)
            releases += found
            if found and max(sum(one["positions"]) for one in found) - begin > _ROWS_AT_ONCE:
                break
        return segments, releases

    def _take_releases(
        self, releases: Sequence[Mapping[str, Any]], wanted: set[bytes], findings: Findings
    ) -> dict[bytes, Reached]:
        """Compare releases with the log; return those whose marks are wanted."""
        last = max((one["number"] for one in releases), default=self._polls)
        ends = self._ends.of(self._polls + 1, last) if last > self._polls else None
        known: dict[bytes, Reached] = {}
        self._asked_until = {}
        shared: dict[Any, Any] = {}
        checked = check_releases(
            releases, self._reached, last, ends, findings, is_exact=self._base.exact
        )
        for (view, shard), at in checked:
            self._reached[view, shard] = at
            events = self._partitions[self._project.view(view).stream.name]
            evidence = at.frontier_us, at.positions[:events]
            # The shards of a view have one, so it is kept once.
            self._releases[view, shard, at.number] = shared.setdefault(evidence, evidence)
            self._asked_until[at.number] = at.positions[events:]
            if at.mark in wanted:
                known[at.mark] = at
        return known

    def _evidence(self) -> Evidence:
        return dataclasses.replace(self._base, releases=self._releases)

    def _compare(
        self,
        segments: Sequence[int],
        releases: Sequence[Mapping[str, Any]],
        positions: Mapping[str, Sequence[int]],
        differences: Differences,
        findings: Findings,
    ) -> tuple[dict[str, int], Served | None]:
        """Compare answers, scores and publications; return counts, and the answers to keep."""
        evidence, counts = self._evidence(), Compared()
        values = ViewValues(self._config, self._rows, evidence, self.share)
        name = self._project.request.name
        asked = self._asked.take(
            stream_log(self._current, self._project), positions[name], self._asked_until
        )
        asked = asked.filter(pa.array(~forgotten_rows(self._project.request, asked)))
        of_requests = Findings().forget_details(
            (LOST, id, "", "") for id in self.record.lost_requests
        )
        served, waits = self._requests.serve(asked, segments, self._reached, of_requests)
        findings.merge(of_requests)
        self._asked.keep(asked, waits)
        if served.count and served.predictions.num_rows:
            check_requests(self._project, served, findings)
            for view in self._project.views:
                of_view, verdict = values.compare_answers(view, served, differences)
                counts.values += of_view
                if verdict is not None:
                    self._kept.note(view, *verdict)
            self._compare_scores(values, served, differences, findings, counts)
        counts.served += served.predictions.num_rows * len(self._project.columns)
        counts.predictions = served.predictions.num_rows
        counts.releases = len(releases)
        published = self._outputs.publications(
            segments,
            {(r["view"], r["shard"], r["number"]): r for r in releases if r["publications"]},
        )
        values.count_publications(releases, published, findings)
        for view in self._project.views:
            values.compare_publications(view, published, served, differences, counts)
        kept = served if served.predictions.num_rows else None
        return counts.as_figures(), kept

    def _compare_scores(
        self,
        values: ViewValues,
        served: Served,
        differences: Differences,
        findings: Findings,
        counts: Compared,
    ) -> None:
        chosen = values.chosen_of_any(served)
        predictions = pa.Table.from_batches([served.predictions.filter(pa.array(chosen))])
        if not len(predictions):
            return
        check = PredictionCheck(
            self._config.root, self._project, predictions, findings,
            is_scored=self._run.scored, models=self._run_now().models,
        )  # fmt: skip
        check.take_served()
        counts.scores = check.scores
        if check.near:
            request = self._project.request.name
            examples = [
                Difference(
                    differences.at, Cause.VERSION, AS_COMPLETE, "score", one.request_id,
                    feature="score", served=one.seen, recomputed=one.expected, why=one.why,
                    events=(
                        request_place(one.request_id, request, one.partition, one.position),
                    ),
                )
                for one in check.nearest
            ]  # fmt: skip
            differences.add_some(examples, check.near)

    def _compare_store(
        self, known: Mapping[bytes, Reached], differences: Differences, findings: Findings
    ) -> dict[str, int]:
        """Read rows of the online store, and compare those whose release is proven."""
        assert self._online is not None
        self._of_store = of_store = self._of_store.forget_details()
        by_mark = {**known, **{at.mark: at for at in self._reached.values()}}
        before = self._online.compared
        values = self._online.compare(
            by_mark, self._rows.of, self._rows.is_chosen, of_store, is_behind=self.behind > 0
        )
        self.store_is_away = ""
        try:
            for view in self._project.views:
                keys, self._sweep[view.name] = self._rows.some_keys(
                    view, self._sweep[view.name], _STORE_KEYS
                )
                self._online.read(view, keys)
                if self._online.is_gone(view):
                    of_store.add(Mismatch("store", view.name, view.name, cause=EMPTIED))
        except StoreError as error:
            self.store_is_away = str(error)
        values += self._online.compare(
            by_mark, self._rows.of, self._rows.is_chosen, of_store, is_behind=self.behind > 0
        )
        findings.merge(of_store)
        for one in self._online.take_expired():
            example = Difference(
                differences.at, Cause.EXPIRED, AS_COMPLETE, "store", one.entity, one.entity,
                one.view.name, as_of=write_instant(one.frontier_us), served="OUTSIDE_MAX_AGE",
                recomputed="PRESENT", why=one.why,
            )  # fmt: skip
            differences.add(example, len(one.view.columns))
        return {"store_rows": self._online.compared - before, "store_values": values}

    def idle(self) -> Round | None:
        """Read rows of the online store and blocks of the log again while nothing is new.

        Returns:
            A round, if it has found a difference.
        """
        began, findings, differences = time.monotonic(), Findings(), _differences()
        counts: dict[str, int] = {}
        log = stream_log(self._current, self._project)
        self._rows.check_again(log)
        if self._online is not None:
            counts = self._compare_store({}, differences, findings)
        self.record = dataclasses.replace(self.record, counts=added(self.record.counts, counts))
        if not findings.count and not differences.causes:
            return None
        differences.take(findings)
        done = Round(
            at_us=time.time_ns() // 1_000,
            up_to_us=self.record.up_to_us,
            seconds=round(time.monotonic() - began, 3),
            behind_s=0.0,
            served=0,
            values=0,
            share=self.share,
            causes={name: count for name, count in differences.causes.items() if count},
        )
        self.record = self.record.with_round(done, differences.examples)
        return done

    # --- what is kept ----------------------------------------------------------------------------

    def narrow(self, share: float) -> None:
        """Recompute a smaller share from now on."""
        self.share = share
        self._rows.narrow(share)

    def _forget(self) -> None:
        frontiers = self._frontiers()
        self._rows.forget_before(frontiers)
        least = min(frontiers.values())
        if least > TIME_MIN:
            self._kept.forget_before(min(least, TIME_MAX) - lateness_us(self._project))
        first = self._first_needed()
        needed = self._polls if first is None else min(first - 1, self._polls)
        self._releases = {at: found for at, found in self._releases.items() if at[2] >= needed}
        while len(self._begun) > 1 and _number(self._begun[1].reached) <= needed:
            self._begun.pop(0)

    def _first_needed(self) -> int | None:
        """Return the lowest number of a release that an answer may name; None if none may.

        Those are answers that are kept, and those of requests that wait: some views may have
        answered them since the poll that brought them.
        """
        polls = [poll for *_, poll in self._asked.places()]
        kept = self._kept.first_release
        return min([*polls, *([] if kept is None else [kept])], default=None)

    def _keep(
        self,
        done: Round,
        examples: Sequence[Difference],
        counts: Mapping[str, int],
        log: Any,
        positions: Mapping[str, Sequence[int]],
    ) -> None:
        begun = self._begun[0]
        if self._first_needed() is None:
            begun = _Begun(self._segment, self._reached, self._asked.places())
        self.record = dataclasses.replace(
            self.record.with_round(done, examples),
            polls=self._polls,
            segment=self._segment,
            reread={
                "segment": begun.segment,
                "waiting": [list(one) for one in begun.waiting],
                "reached": [
                    [
                        view,
                        shard,
                        at.number,
                        at.frontier_us,
                        list(at.positions),
                        at.mark.hex(),
                        list(at.applied),
                    ]
                    for (view, shard), at in begun.reached.items()
                ],
                "proven": {name: list(places) for name, places in positions.items()},
            },
            digests=cut_digests(log, positions),
            counts=added(self.record.counts, counts),
        )


def _differences() -> Differences:
    return Differences(write_instant(time.time_ns() // 1_000 // SECOND * SECOND))


def _number(reached: Mapping[Place, Reached]) -> int:
    return max(at.number for at in reached.values())


def _words(rows: pa.Table, column: str) -> Int64Array:
    return hashing.bits(one_batch(rows.select([column])).column(0))
