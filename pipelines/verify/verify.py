"""Verification: everything that a root holds is recomputed from the raw source files, and compared.

Promises: each value is compared bit for bit; no value is rounded or skipped, and what could not be
compared is counted and said. The witness is the raw files (`pipelines.verify.witness`).

* `pipelines.verify.outputs`: a stream is repeated from the log; its releases, publications, scores,
  stamps and rejected records are compared, and the rows of the online store, column by column;
* `pipelines.verify.outputs.compare_delivered`: the messages of the topics that it has written to;
* `pipelines.verify.lost_requests`: requests that a live stream should have answered, and has not;
* `pipelines.verify.compare_predictions`: the features of predictions, as complete and as seen;
* `pipelines.verify.compare_labels`: predictions whose label had come before their request;
* `pipelines.verify.diagnosis`: the cause of a wrong value;
* `pipelines.verify.compare_oracle`: a sample in plain Python, without the kernel;
* `pipelines.verify.compare_store`: the online store through Feast's own SDK;
* `pipelines.verify.compare_offline`: the offline logs;
* `pipelines.verify.compare_build`, `pipelines.verify.compare_training`: manifest, states, and the
  training table;
* `pipelines.verify.compare_archive`: the archive of the rows of topics;
* `pipelines.verify.compare_lost`: what topics have lost before it was read, and who accepted it.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import FORGOTTEN, forgotten_rows, others_that_read
from tidemill.pipelines.io.live.live_log import LIVE
from tidemill.pipelines.io.live.removed import RemovedRows
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.compare_archive import compare_archive
from tidemill.pipelines.verify.compare_lost import compare_lost
from tidemill.pipelines.verify.compare_oracle import DEADLINE_S
from tidemill.pipelines.verify.definitions_of import configuration_of
from tidemill.pipelines.verify.findings import Findings, Mismatch, excusing
from tidemill.pipelines.verify.instants import instant_text
from tidemill.pipelines.verify.lost_requests import compare_requests
from tidemill.pipelines.verify.prove_build import prove_build
from tidemill.pipelines.verify.prove_published import prove_published
from tidemill.pipelines.verify.prove_stream import (
    SUMMED,
    Sampling,
    nothing_streamed,
    prove_stream,
)
from tidemill.pipelines.verify.released import released_streams
from tidemill.pipelines.verify.store_origins import find_origins
from tidemill.pipelines.verify.witness import Witnesses


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
        predictions times features, and ``training_values``, of training rows times features; the
        figures of each comparison; the first mismatches; the figures of ``earlier`` streams;
        ``lost``, what topics have lost and a person has accepted; and the requests without an
        answer (`pipelines.verify.lost_requests.compare_requests`).

    Raises:
        InputError: Other definitions made the predictions.
    """
    with excusing(others_that_read(config.root)):
        return _verify(config.pin(), progress, sample, deadline_s)


def _verify(
    config: Configuration, progress: Progress, sample: int, deadline_s: float
) -> dict[str, Any]:
    began = time.perf_counter()
    streams = released_streams(config.current)
    origins, sampling = find_origins(config, streams), Sampling(sample, deadline_s)
    witnesses, everything, earlier = Witnesses(progress), Findings(), []
    build = prove_build(config, streams, progress, witnesses)
    figures, of_requests = nothing_streamed(config), Findings()
    unanswered = compare_requests(config, progress, of_requests)
    everything.merge(of_requests)
    for number, current in enumerate(streams):
        row: dict[str, Any] = {"generation": current.generation, "stream": current.stream}
        made_by = configuration_of(config, current)
        if isinstance(made_by, str):
            progress.say(f"{current.stream_folder} is not proven: it is {made_by}")
            earlier.append({**row, "mismatches": None, "why": made_by})
            continue
        proof = prove_stream(
            made_by, progress, witnesses, sampling, origins,
            known=of_requests if current.stream_folder == config.current.stream_folder else None,
        )  # fmt: skip
        everything.merge(proof.all())
        if not number:
            figures = proof.figures
            continue
        for name in SUMMED:
            figures[name] += proof.figures[name]
        earlier.append(
            {
                **row,
                "mismatches": proof.all().count,
                "why": "",
                "predictions": proof.figures["predictions"],
            }
        )
    if not streams:
        progress.say(f"no stream in {config.root} has released anything yet")
    blank = forgotten_rows(config.root, config.current.generation)
    if blank:
        progress.say(
            f"{blank:,} rows of the log were forgotten (records in {config.root / FORGOTTEN}): "
            "their places are proven, not what they held"
        )
    archive, of_lost = Findings(), Findings()
    lost = compare_lost(config, progress, of_lost)
    of_archive = compare_archive(config, progress, archive)
    for of_it, findings in (
        prove_published(config, progress, witnesses, origins),
        build,
        (of_archive, archive),
        ({"lost_mismatches": lost["lost_mismatches"]}, of_lost),
    ):
        everything.merge(findings)
        for name, count in of_it.items():
            figures[name] = figures.get(name, 0) + count
    removed = RemovedRows.read(config.current.folder / LIVE)
    if removed.rows:
        progress.say(
            f"{removed.rows:,} rows received before {instant_text(removed.before_us)} were removed "
            "from the live log by age: the build has them, and their digest is compared"
        )
    if everything.forgotten:
        progress.say(
            f"{everything.forgotten:,} values read a key that was forgotten, and cannot be "
            f"recomputed: those of {', '.join(sorted(others_that_read(config.root)))}"
        )
    return {
        **figures,
        **unanswered,
        "store_generations": {view: origin.generation for view, origin in origins.items()},
        "earlier": earlier,
        "live_rows_removed": removed.rows,
        "lost": lost["lost"],
        "lost_messages": lost["lost_messages"],
        "forgotten_rows": blank,
        "forgotten_values": everything.forgotten,
        "mismatches": everything.count,
        "seconds": round(time.perf_counter() - began, 3),
        "ended_us": time.time_ns() // 1_000,
        "first_mismatches": [_row(mismatch) for mismatch in everything.listed],
    }


def _row(mismatch: Mismatch) -> dict[str, Any]:
    as_of = "" if mismatch.as_of_us is None else instant_text(mismatch.as_of_us)
    row = {**asdict(mismatch), "as_of_us": as_of}
    for name in ("kind", "entity", "events"):  # the cause says them in words
        del row[name]
    return {name.removesuffix("_us"): value for name, value in row.items()}
