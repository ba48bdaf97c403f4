"""The proof of one stream: its outputs, the values of its predictions, and its publications."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import ARROW_TYPES, FeatureView, Project
from tidemill.features.definitions.canonical import spec_hash
from tidemill.features.errors import DamagedFile, StateError, StateMismatch
from tidemill.features.kernel import hashing
from tidemill.features.kernel.prepare import fixed_binary
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.log import PARTITION, POSITION, forgotten_rows
from tidemill.pipelines.publish.offline_history import log_shard
from tidemill.pipelines.recovery.handoff import (
    StreamRun,
    columns_of,
    cut_digests,
    last_states,
    request_hash,
)
from tidemill.pipelines.recovery.log_parts import (
    have_grown,
    parts_before,
    source_partitions,
    stream_log,
)
from tidemill.pipelines.recovery.savepoints import faults_of_savepoint
from tidemill.pipelines.recovery.stream_beginning import carried_joiners
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord, began_at
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.scratch import scratch_folder
from tidemill.pipelines.stream.answer_join import answered_schema
from tidemill.pipelines.stream.answer_parts import partition_of
from tidemill.pipelines.stream.infer import predictions as predictions_of
from tidemill.pipelines.stream.output_folders import all_outputs
from tidemill.pipelines.verify.compare_build import compare_record
from tidemill.pipelines.verify.compare_labels import answered_after_label
from tidemill.pipelines.verify.compare_offline import compare_offline
from tidemill.pipelines.verify.compare_oracle import (
    affordable,
    check_with_oracle,
    sampled_rows,
)
from tidemill.pipelines.verify.compare_predictions import ViewVerdict, compare_predictions
from tidemill.pipelines.verify.compare_store import StoreCounts, check_store
from tidemill.pipelines.verify.diagnosis import late_events, note_wrong_values
from tidemill.pipelines.verify.findings import LISTED, Findings, Mismatch
from tidemill.pipelines.verify.instants import instant_text
from tidemill.pipelines.verify.outputs.compare_delivered import FIGURES, compare_delivered
from tidemill.pipelines.verify.outputs.compare_outputs import compare_outputs
from tidemill.pipelines.verify.outputs.compare_rows import RowCheck, RowCounts
from tidemill.pipelines.verify.outputs.extent import Outputs
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.outputs.reach import Reach
from tidemill.pipelines.verify.prove_published import published_operators
from tidemill.pipelines.verify.raw_history import with_live_rows
from tidemill.pipelines.verify.release_evidence import Evidence, read_evidence
from tidemill.pipelines.verify.served import (
    Served,
    predictions_between,
    serve_beside_requests,
)
from tidemill.pipelines.verify.source_history import History, SourceHistory
from tidemill.pipelines.verify.store_origins import Origin
from tidemill.pipelines.verify.witness import Witnesses
from tidemill.serving.generations.current import read_current
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import Frontiers


@dataclass(frozen=True)
class Sampling:
    """What the oracle compares.

    Attributes:
        requests: How many requests are drawn.
        deadline_s: After so many seconds it ends.
    """

    requests: int
    deadline_s: float


@dataclass
class Proof:
    """What was found about a stream, by what was compared.

    Attributes:
        features: Requests, stamps and features of predictions.
        oracle: Features, by the oracle.
        scores: Scores and stamps of predictions.
        outputs: The record of the stream, releases, publications and rejected records.
        store: Rows of the online store.
        offline: Rows of the offline logs.
        delivered: Messages of topics.
        figures: Figures by name.
    """

    features: Findings = field(default_factory=Findings)
    oracle: Findings = field(default_factory=Findings)
    scores: Findings = field(default_factory=Findings)
    outputs: Findings = field(default_factory=Findings)
    store: Findings = field(default_factory=Findings)
    offline: Findings = field(default_factory=Findings)
    delivered: Findings = field(default_factory=Findings)
    figures: dict[str, Any] = field(default_factory=dict)

    def all(self) -> Findings:
        """Return all mismatches."""
        everything = Findings()
        for findings in (
            self.features, self.oracle, self.store, self.scores, self.outputs, self.offline,
            self.delivered,
        ):  # fmt: skip
            everything.merge(findings)
        return everything

    def counts(self) -> dict[str, int]:
        """Return the number of mismatches of each kind."""
        return {
            "feature_mismatches": self.features.count,
            "oracle_mismatches": self.oracle.count,
            "score_mismatches": self.scores.count,
            "output_mismatches": self.outputs.count,
            "delivery_mismatches": self.delivered.count,
            "store_mismatches": self.store.count,
            "offline_mismatches": self.offline.count,
        }


SUMMED: Final = (
    "values", "scores", "scores_elsewhere", "releases", "publications", "rejected", "store_rows",
    "store_parts_moving", "offline_rows", "score_mismatches", "output_mismatches",
    "store_mismatches", "offline_mismatches", "answered_after_label", *StoreCounts().as_figures(),
    "delivery_mismatches", "not_sealed", *FIGURES,
)  # fmt: skip
"""The figures that are those of all streams together."""


def nothing_streamed(config: Configuration) -> dict[str, Any]:
    """Return the figures of a root without a stream."""
    names = (
        *SUMMED, "requests", "rejected_requests", "waiting_requests", "predictions",
        "feature_mismatches", "late_values", "oracle_requests", "oracle_too_costly",
        "oracle_not_reached", "oracle_values", "oracle_mismatches",
    )  # fmt: skip
    return {
        **dict.fromkeys(names, 0),
        "sources": {},
        "generation": config.current.generation,
        "log_is_witness": [],
        "files_written_again": [],
        "features": len(config.project.columns),
        "first_late": [],
    }


def prove_stream(
    config: Configuration,
    progress: Progress,
    witnesses: Witnesses,
    sampling: Sampling,
    origins: Mapping[str, Origin],
    known: Findings | None = None,
) -> Proof:
    """Prove one stream, and the rows of the online store that it has published.

    Args:
        config: The configuration, with the folders of the stream.
        progress: Where progress is shown.
        witnesses: Reads what its log was made from.
        sampling: What the oracle compares.
        origins: View to what its rows in the online store were made from.
        known: What is counted already (`pipelines.verify.lost_requests`); None for nothing.

    Raises:
        StateMismatch: There is no record of the stream.
    """
    proof, current = Proof(), config.current
    if known is not None:
        proof.features = known.forget_details()
    run = StreamRun.read(current.stream_folder)
    if run is None:
        raise StateMismatch(
            f"{current.stream_folder} has outputs of a stream, and not its record (stream.json): "
            "restore it, or run `tidemill stream`"
        )
    reach = Reach.now(config, run)  # before anything is read
    witness = witnesses.of(config, proof.features)
    history = with_live_rows(config, witness.history)
    _check_run(config, run, proof.outputs)
    for folder in all_outputs(current.stream_folder):
        try:
            folder.check_places()
        except DamagedFile as error:
            name = str(folder.path.relative_to(current.stream_folder))
            proof.outputs.add(Mismatch("record", name, feature="segments", cause=str(error)))
    predictions = predictions_between(current.stream_folder, config.project)
    if predictions is None:
        predictions = _no_predictions(config.project)
    views = [view for view, origin in origins.items() if origin[:2] == (current, True)]
    database = open_database(config.online_store)
    rows = RowCheck(config.project, database, views, proof.store) if views else None
    given, offline_rows = _compare_files(config, run, predictions, rows, reach, progress, proof)
    predictions = given.predictions
    evidence = read_evidence(config, history, given.releases)
    end_us = evidence.stream_until_us
    asked = history.requests.received_in(run.as_of_us, end_us)
    if run.upgraded_from is not None:
        asked = pa.concat_tables([_carried(config, run, history), asked])
    asked = asked.filter(pa.array(~forgotten_rows(config.project.request, asked)))
    served = serve_beside_requests(asked, predictions, given, config.project, proof.features)
    if served.waiting:
        progress.say(
            f"the stream in {current.stream_folder} has not ended: {served.waiting:,} requests "
            "have no answer yet"
        )
    verdicts = list(compare_predictions(history, evidence, served, progress, proof.features))
    late: list[dict[str, Any]] = []
    for verdict in verdicts:
        note_wrong_values(verdict, evidence, served, proof.features, LISTED)
        late += _late_rows(verdict, evidence, served, LISTED - len(late))
    if after_label := answered_after_label(history, served):
        progress.say(
            f"{after_label:,} requests came after the event that is their label: their features "
            "may know what the model predicts, so do not judge the model by them"
        )
    of_oracle = _check_with_oracle(
        config, verdicts, evidence, served, sampling, progress, proof.oracle
    )
    stored, row_counts = StoreCounts(), RowCounts()
    if rows is not None:
        stored = check_store(
            config,
            history,
            functools.partial(_applied, rows, evidence),
            views,
            progress,
            proof.store,
            rows.is_still,
        )
        if rows.sought and run.upgraded_from is None:  # else no build has its definitions
            rows.take(published_operators(config, rows))
        rows.check_records(run, run.mode)
        row_counts = rows.finish(given.extent.complete)
    database.close()
    delivered = compare_delivered(config, progress, proof.delivered)
    proof.figures = {
        "sources": _source_counts(history, run.as_of_us, end_us),
        "generation": current.generation,
        "log_is_witness": [f"{name}: {why}" for name, why in witness.changed.items()],
        "files_written_again": [f"{name}: {why}" for name, why in witness.resaved.items()],
        "requests": served.expected + served.unanswered,
        "rejected_requests": served.unanswered,
        "waiting_requests": served.waiting,
        "predictions": served.count,
        "features": len(config.project.columns),
        "values": served.count * len(config.project.columns),
        "late_values": sum(int(verdict.late.sum()) for verdict in verdicts),
        "answered_after_label": after_label,
        **of_oracle,
        **stored.as_figures(),
        "store_rows": row_counts.rows,
        "store_parts_moving": row_counts.moving,
        **given.figures,
        "offline_rows": offline_rows,
        **delivered,
        **proof.counts(),
        "first_late": late,
    }
    return proof


def _carried(config: Configuration, run: StreamRun, history: History) -> pa.Table:
    """Return the requests that the stream before had not answered."""
    requests = history.requests.rows
    places = places_of(requests, PARTITION, POSITION)
    waited = [
        places_of(
            pending.rows.append_column(
                PARTITION, pa.array(np.full(pending.rows.num_rows, partition_of(group)))
            ),
            PARTITION,
            POSITION,
        )
        for joiner in carried_joiners(config, run).all
        for group, pending in joiner.pending.items()
    ]
    wanted = np.isin(places, np.concatenate([np.zeros(0, np.int64), *waited]))
    return requests.filter(pa.array(wanted))


def _applied(
    rows: RowCheck,
    evidence: Evidence,
    view: FeatureView,
    source: SourceHistory,
    frontiers: Frontiers,  # noqa: ARG001 - what the marks say is more exact
) -> BoolArray:
    """Tell which rows of a stream are in what readers see, by the marks or by the last releases."""
    found = rows.applied(view, source)
    if found is not None:
        return found
    limits = evidence.applied(view, source.partitions)
    keys = source.rows.column(view.key).combine_chunks()
    shards = hashing.shard_of(hashing.key_bytes(keys), evidence.shards)
    applied: BoolArray = source.words(POSITION) < limits[shards, source.words(PARTITION)]
    return applied


def _check_run(config: Configuration, run: StreamRun, findings: Findings) -> None:
    """Compare the record of a stream with its build and its log."""
    current, log = config.current, stream_log(config.current, config.project)
    partitions = source_partitions(log, config.project)
    _, positions = parts_before(log, config.project, partitions, run.as_of_us)
    views = {view.name: view.hash for view in config.project.views}
    expected: dict[str, Any] = {
        "generation": current.generation,
        "positions": positions,
        "digests": cut_digests(log, positions),
        "clock": config.clock,
    }
    if run.views is not None:
        expected["views"] = views
        expected["shards"] = config.shards
    if run.definitions is not None and spec_hash(run.definitions) != config.project.hash:
        expected["definitions"] = config.project.spec()
    if run.request is not None:
        expected["request"] = request_hash(config.project.request)
    if run.columns is not None and not have_grown(run.columns, config.project):
        expected["columns"] = columns_of(config.project)
    manifest = BuildManifest.read(current.build_folder)
    is_of_these = (manifest.views, manifest.shards) == (views, config.shards)
    if manifest.as_of_us == run.as_of_us and run.upgraded_from is None and is_of_these:
        expected["began"] = manifest.handoff
    compare_record("stream.json", vars(run), expected, findings)
    if not run.ended:
        for fault in faults_of_savepoint(current, run):
            findings.add(Mismatch("savepoint", fault, cause="the stream cannot be resumed"))
    _check_sealed(config, findings)


def _check_sealed(config: Configuration, findings: Findings) -> None:
    """Check that the live log is sealed as far as the last savepoint has its rows.

    An older copy of the record would let the proof leave out what came since.
    """
    live = LiveLog(config.current.folder / LIVE, config.project)
    if not (config.is_live and live.exists):
        return
    try:
        handoff = last_states(config.current)[1]  # read first: the stream may go on meanwhile
    except StateError:
        return  # that is a fault of its own
    sealed, topics = live.sealed().positions, live.topics()
    for name, topic in topics.items():
        kept = handoff.positions[name][topic.first :]
        if handoff.kind == "stop" and any(a < b for a, b in zip(sealed[name], kept, strict=False)):
            cause = "sealed.json is an older copy: restore the newest, or resume the stream"
            findings.add(
                Mismatch(
                    "log", name, seen=f"sealed up to {[*sealed[name]]}",
                    expected=f"{kept}, which the last savepoint holds", cause=cause,
                )
            )  # fmt: skip


def _compare_files(
    config: Configuration,
    run: StreamRun,
    predictions: pa.Table,
    rows: RowCheck | None,
    reach: Reach | None,
    progress: Progress,
    proof: Proof,
) -> tuple[Outputs, int]:
    """Repeat the stream, and compare its files."""

    def outputs(offline: Path | None) -> Outputs:
        return compare_outputs(
            config, run, predictions, rows, offline, reach, progress, proof.outputs, proof.scores
        )

    if run.offline is None or _is_followed(config):
        return outputs(None), 0
    with scratch_folder(config.root, "verify-offline") as offline:
        _log_history(config, run, offline)
        given = outputs(offline)
        folder = replace(config.current, offline=run.offline).offline_root
        found = Findings()
        is_still = reach is None or reach.is_at_rest
        since = _taken_over(config, run)
        compared = _compare_offline(
            config, folder, offline, given, progress, found, is_still, since
        )
        if is_still and reach is not None and not reach.is_at_rest:
            # The stream has gone on while its log was read.
            found = Findings()
            compared = _compare_offline(
                config, folder, offline, given, progress, found, False, since
            )
        proof.offline.merge(found)
        return given, compared


def _log_history(config: Configuration, run: StreamRun, offline: Path) -> None:
    """Write the offline logs again up to where a stream begins."""
    log, began = stream_log(config.current, config.project), began_at(config, run)
    for view in config.project.views:
        target = OfflineLog.of(offline, view)
        for shard, frontier_us in enumerate(began[view.name]):
            log_shard(
                view,
                log,
                target,
                shard=shard,
                shards=config.shards,
                until_us=frontier_us,
                positions=run.positions[view.stream.name],
            )


def _is_followed(config: Configuration) -> bool:
    """Tell whether another stream goes on with this one, and adds to the same offline logs."""
    current, newest = config.current, read_current(config.root)
    if newest.generation != current.generation:
        return False
    later = range(current.stream + 1, newest.stream + 1)
    runs = (StreamRun.read(current.with_stream(number).stream_folder) for number in later)
    return any(run is not None and run.upgraded_from == current.stream for run in runs)


def _taken_over(config: Configuration, run: StreamRun) -> dict[str, int]:
    """Return until when streams of other versions have added to the offline logs, by view."""
    upgrade = UpgradeRecord.of(run, config.current.stream_folder)
    if upgrade is None:
        return {}
    return {view: max(upgrade.frontiers[view]) for view in upgrade.kept(run)}


def _compare_offline(
    config: Configuration,
    found: Path,
    right: Path,
    given: Outputs,
    progress: Progress,
    findings: Findings,
    is_still: bool,
    since: Mapping[str, int],
) -> int:
    rows = 0
    has_ended = is_still and given.extent.complete == given.extent.last
    with progress.stage("compare the offline logs", None, "days") as stage:
        for view in config.project.views:
            rows += compare_offline(
                view,
                OfflineLog.of(found, view),
                OfflineLog.of(right, view),
                findings,
                stage,
                until_us=None if has_ended else given.frontiers[view.name],
                since_us=since.get(view.name, TIME_MIN),
            )
    return rows


def _check_with_oracle(
    config: Configuration,
    verdicts: list[ViewVerdict],
    evidence: Evidence,
    served: Served,
    sampling: Sampling,
    progress: Progress,
    findings: Findings,
) -> dict[str, int]:
    asked = hashing.bits(served.requests.column(config.project.request.request_time))
    drawn = affordable(verdicts, sampled_rows(asked, sampling.requests))
    with progress.stage("check a sample with the oracle", drawn.steps, "steps") as stage:
        compared = check_with_oracle(
            verdicts, evidence, served, drawn, findings, stage, deadline_s=sampling.deadline_s
        )
    if (left := len(drawn.rows) - compared.requests) or drawn.costly:
        progress.say(
            f"the oracle recomputed {compared.requests:,} of {compared.requests + left:,} sampled "
            f"requests; {drawn.costly:,} more cost too much, {left:,} did not fit in "
            f"{sampling.deadline_s:g} s"
        )
    return {
        "oracle_requests": compared.requests,
        "oracle_too_costly": drawn.costly,
        "oracle_not_reached": left,
        "oracle_values": compared.values,
    }


def _source_counts(history: History, start_us: int, stop_us: int) -> dict[str, Mapping[str, int]]:
    return {
        name: {
            "read": source.counts.read,
            "accepted": source.counts.kept,
            "dropped": source.counts.dropped,
            "rejected": source.counts.rejected,
            "streamed": len(source.received_in(start_us, stop_us)),
        }
        for name, source in history.sources.items()
    }


def _late_rows(
    verdict: ViewVerdict, evidence: Evidence, served: Served, room: int
) -> list[dict[str, Any]]:
    """Return the first late values with the events that explain them."""
    rows: Int64Array = np.flatnonzero(verdict.late.any(axis=1))[: max(room, 0)]
    ids = served.predictions.column("request_id")
    return [
        {
            "request": ids[row].as_py(),
            "view": verdict.view.name,
            "as_of": instant_text(int(verdict.as_of_us[row])),
            "values": int(verdict.late[row].sum()),
            "late_events": ", ".join(late_events(verdict, evidence, row)),
        }
        for row in rows.tolist()
    ]


def _no_predictions(project: Project) -> pa.Table:
    """Return the predictions of a stream that has answered nothing, ``(0,)``."""
    number = pa.array([], pa.int64())
    of_views = fixed_binary(np.zeros((0, len(project.views)), np.int64))
    of_columns = (
        fixed_binary(np.zeros((0, len(project.columns)), t)) for t in (np.int64, np.uint8)
    )
    answered = pa.RecordBatch.from_arrays(
        [
            *(pa.array([], ARROW_TYPES[dtype]) for dtype in project.request.schema.values()),
            *(number, number, number, number),
            *(of_views, of_views, of_views),
            *of_columns,
        ],
        names=answered_schema(project),
    )
    return pa.Table.from_batches([predictions_of(project, None, answered, 0)])
