"""Verification of a stream: recompute what it served from the raw source files, and compare.

Promises: predictions, releases and the online store are compared with values recomputed from the
raw files (`pipelines.verify.witness`), not from other outputs of the stream. Each value is compared
bit for bit; no value is rounded or skipped.

* `pipelines.verify.compare_predictions`: the values of predictions, as complete and as seen;
* `pipelines.verify.diagnosis`: the cause of a wrong value;
* `pipelines.verify.compare_oracle`: a sample in plain Python, without the kernel;
* `pipelines.verify.compare_store`: the online store through Feast's own SDK.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from tidemill.features.contract import Int64Array, moment_of
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration, Splits
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.compare_oracle import (
    DEADLINE_S,
    affordable,
    check_with_oracle,
    sampled_rows,
)
from tidemill.pipelines.verify.compare_predictions import ViewVerdict, compare_predictions
from tidemill.pipelines.verify.compare_store import StoreCounts, check_store
from tidemill.pipelines.verify.diagnosis import late_events, note_wrong_values
from tidemill.pipelines.verify.findings import LISTED, Findings, Mismatch
from tidemill.pipelines.verify.release_evidence import Evidence, read_evidence
from tidemill.pipelines.verify.served import (
    Served,
    prediction_files,
    read_predictions,
    serve_beside_requests,
    streams_to_prove,
)
from tidemill.pipelines.verify.source_history import History
from tidemill.pipelines.verify.store_origins import Origin, find_origins
from tidemill.pipelines.verify.witness import find_witness
from tidemill.serving.generations.current import Current


def verify(
    config: Configuration,
    progress: Progress,
    sample: int = 1000,
    deadline_s: float = DEADLINE_S,
) -> dict[str, Any]:
    """Recompute all served values, and compare.

    The rows of the online store are proven against the history that they were made from
    (`pipelines.verify.store_origins`).

    The stream that is current is proven, or the newest one before it if none has begun since; and
    every earlier one whose folder is there, against the log of its own generation.

    Args:
        config: The configuration; its root holds predictions, releases and the online store.
        progress: Where progress is shown.
        sample: How many requests are drawn for the plain-Python oracle; it leaves out those that
            cost too much (`pipelines.verify.compare_oracle`).
        deadline_s: After so many seconds the oracle ends, for each stream.

    Returns:
        JSON values: ``mismatches``, the number of all mismatches; ``values``, the number of
        predictions times features; the figures of each comparison; the first mismatches; and the
        figures of ``earlier`` streams.

    Raises:
        InputError: There are no predictions or releases, or other definitions made them.
    """
    began = time.perf_counter()
    config = config.pin()
    streams = streams_to_prove(config.current)
    first, *others = streams
    prediction_files(first.stream_folder)  # without any there is nothing to prove
    origins = find_origins(config, streams)
    figures, everything = _prove(
        replace(config, pinned=first), progress, sample, origins, deadline_s
    )
    earlier = []
    for current in others:
        made_by = BuildManifest.read(current.build_folder).project
        row: dict[str, Any] = {"generation": current.generation, "stream": current.stream}
        if made_by != config.project.hash:
            earlier.append({**row, "mismatches": None, "why": f"of definitions {made_by}"})
            continue
        of_it, findings = _prove(
            replace(config, pinned=current), progress, sample, origins, deadline_s
        )
        everything.merge(findings)
        for name in ("values", *StoreCounts().as_figures(), "store_mismatches"):
            figures[name] += of_it[name]
        earlier.append(
            {**row, "mismatches": findings.count, "why": "", "predictions": of_it["predictions"]}
        )
    stored, store = _prove_published(config, progress, origins)
    everything.merge(store)
    for name, count in {**stored.as_figures(), "store_mismatches": store.count}.items():
        figures[name] += count
    return {
        **figures,
        "store_generations": {view: origin.generation for view, origin in origins.items()},
        "earlier": earlier,
        "mismatches": everything.count,
        "seconds": round(time.perf_counter() - began, 3),
        "first_mismatches": [_row(mismatch) for mismatch in everything.listed],
    }


def _prove_published(
    config: Configuration, progress: Progress, origins: Mapping[str, Origin]
) -> tuple[StoreCounts, Findings]:
    """Prove the rows of the online store that a backfill has published."""
    findings, total = Findings(), StoreCounts()
    by_folders: dict[Current, list[str]] = {}
    for view, origin in origins.items():
        if origin.current is None:
            findings.add(
                Mismatch(
                    "store", view, view, seen=f"rows of generation {origin.generation}",
                    expected=f"generation {config.current.generation}",
                    cause="the log that they were made from is no longer there; run `tidemill "
                    "backfill --publish`",
                )
            )  # fmt: skip
        elif not origin.is_of_stream:
            by_folders.setdefault(origin.current, []).append(view)
    for current, views in by_folders.items():
        of_it = replace(config, pinned=current)
        history = find_witness(of_it, progress, findings).history
        found = check_store(of_it, history, None, views, progress, findings)
        total = StoreCounts(*map(operator.add, total, found))
    return total, findings


def _prove(
    config: Configuration,
    progress: Progress,
    sample: int,
    origins: Mapping[str, Origin],
    deadline_s: float,
) -> tuple[dict[str, Any], Findings]:
    """Prove one stream, and the rows of the online store that it has published."""
    features, oracle, store = Findings(), Findings(), Findings()
    witness = find_witness(config, progress, features)
    history = witness.history
    evidence = read_evidence(config, history)
    _check_evidence(evidence, features)
    stream = config.current.stream_folder
    predictions = read_predictions(stream, config.project)
    run = StreamRun.read(stream)
    served = serve_beside_requests(
        stream,
        config.splits,
        history,
        predictions,
        features,
        ended=run is None or run.ended,
    )
    if served.waiting:
        progress.say(
            f"the stream in {stream} has not ended: {served.waiting:,} requests have no answer yet"
        )
    asked = hashing.bits(served.requests.column(config.project.request.request_time))
    late: list[dict[str, Any]] = []
    verdicts = list(compare_predictions(history, evidence, served, progress, features))
    for verdict in verdicts:
        note_wrong_values(verdict, evidence, served, features, LISTED)
        late += _late_rows(verdict, evidence, served, LISTED - len(late))
    drawn = affordable(verdicts, sampled_rows(asked, sample))
    with progress.stage("check a sample with the oracle", drawn.steps, "steps") as stage:
        compared = check_with_oracle(
            verdicts, evidence, served, drawn, oracle, stage, deadline_s=deadline_s
        )
    if (left := len(drawn.rows) - compared.requests) or drawn.costly:
        progress.say(
            f"the oracle recomputed {compared.requests:,} of {compared.requests + left:,} sampled "
            f"requests; {drawn.costly:,} more cost too much, {left:,} did not fit in "
            f"{deadline_s:g} s"
        )
    stored, mine = StoreCounts(), config.current
    if views := [view for view, origin in origins.items() if origin[:2] == (mine, True)]:
        stored = check_store(config, history, evidence, views, progress, store)
    everything = Findings()
    for findings in (features, oracle, store):
        everything.merge(findings)
    figures = {
        "sources": _source_counts(config.splits, history),
        "generation": config.current.generation,
        "log_is_witness": [f"{name}: {why}" for name, why in witness.changed.items()],
        "requests": served.expected + served.unanswered,
        "rejected_requests": served.unanswered,
        "waiting_requests": served.waiting,
        "predictions": served.count,
        "features": len(config.project.columns),
        "values": served.count * len(config.project.columns),
        "feature_mismatches": features.count,
        "late_values": sum(int(verdict.late.sum()) for verdict in verdicts),
        "oracle_requests": compared.requests,
        "oracle_too_costly": drawn.costly,
        "oracle_not_reached": left,
        "oracle_values": compared.values,
        "oracle_mismatches": oracle.count,
        **stored.as_figures(),
        "store_mismatches": store.count,
        "first_late": late,
    }
    return figures, everything


def _check_evidence(evidence: Evidence, findings: Findings) -> None:
    faults = (
        (evidence.gaps, "no evidence", "the engine lost it: every step leaves evidence"),
        (evidence.conflicts, "two that differ", "the engine repeated it with another outcome"),
    )
    for releases, seen, cause in faults:
        for view, shard, number in releases:
            id = f"release {number} of shard {shard}"
            findings.add(Mismatch("release", id, view, seen=seen, expected="one", cause=cause))


def _source_counts(splits: Splits, history: History) -> dict[str, Mapping[str, int]]:
    return {
        name: {
            "read": source.counts.read,
            "accepted": source.counts.kept,
            "dropped": source.counts.dropped,
            "rejected": source.counts.rejected,
            "streamed": len(source.received_in(splits.evaluate_until_us, splits.stream_until_us)),
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
            "as_of": instant(int(verdict.as_of_us[row])),
            "values": int(verdict.late[row].sum()),
            "late_events": ", ".join(late_events(verdict, evidence, row)),
        }
        for row in rows.tolist()
    ]


def _row(mismatch: Mismatch) -> dict[str, Any]:
    as_of = "" if mismatch.as_of_us is None else instant(mismatch.as_of_us)
    row = {**asdict(mismatch), "as_of_us": as_of}
    return {name.removesuffix("_us"): value for name, value in row.items()}


def instant(time_us: int) -> str:
    """Format an instant with microseconds; as a number if it is outside the calendar."""
    try:
        return moment_of(time_us).isoformat(timespec="microseconds")
    except OverflowError:
        return str(time_us)
