"""Write golden files of all formats with the current code.

    python -m tests.golden.make tests/golden/frames_8

Do this once for each new version of a format, into a new folder, and add the folder to
`tests.golden.golden_test`. **Never write a folder again that is there**: its files stand for the
data that users have, and every later version must read them, or refuse them by name where the
CHANGELOG says what to do. Where a later version reads an old file into something else (a new
field, say), its expectation is changed by hand, with the reason.

The folders:

``frames_1`` to ``frames_7``
    One file for each format, and ``expected.json``: their contents. In ``frames_1`` polls have no
    numbers, releases no marks, and parts name their views by their place. Since ``frames_2`` states
    and streams name the log that they were made from, and there are a log with digests, ``CURRENT``
    and the manifest of a build. Since ``frames_3`` rows say when they arrived. Since ``frames_4``
    the record of a stream says whether it has a model; every stream before had one. Operators do
    not remember ids any more, and hashes are those of version 2 of the canonical form. Since
    ``frames_5`` there are logged polls, and the records of live streams. Since ``frames_6`` polls
    may have the mark of a savepoint, and states at savepoints are written in pieces. Since
    ``frames_7`` outputs are appended to parts, and joined.
``before_frames/root``
    The root of a small stream that stopped at a savepoint (12 trips, 8 requests), written by the
    commit before frames: log, states and stop (pickles), offline log, online store (SQLite),
    predictions, publications, rejected records, releases. ``expected.json`` says what that commit
    read in it.
``before_frames/shop``
    ``run.json``, ``summary.json`` and a bundle's ``manifest.json``, by the same commit.
"""

from __future__ import annotations

import random
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from tests.golden.formats import OUTPUT_PART, SHARD, SHARDS, VIEW, described, joiner
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    PlainStream,
    arrivals,
    elements_of,
    end_of,
    random_polls,
    random_rows,
    write_log,
)
from tidemill.features.kernel.encoding import encode
from tidemill.features.rows import rejected
from tidemill.pipelines.history.build_manifest import BuildManifest, source_records
from tidemill.pipelines.ingest.build_topics import BuildTopic, write_topics
from tidemill.pipelines.ingest.source_digests import SourceFile
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.live_records import Sealed
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.output_parts import PartWriter
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun, cut_digests
from tidemill.pipelines.stream.answer_parts import SavepointPart, Unanswered
from tidemill.pipelines.stream.operator_state import LoggedRelease, encode_release
from tidemill.pipelines.stream.publications import publications_output
from tidemill.pipelines.stream.release_line import release_line
from tidemill.pipelines.stream.savepoint_files import SavepointFiles
from tidemill.pipelines.stream.sequence import decode_batches
from tidemill.pipelines.stream.shard import request_parts
from tidemill.pipelines.stream.state_files import file_hashes, write_handoff, write_joiner
from tidemill.pipelines.stream.wire_format import (
    encode_logged_parts,
    encode_part,
    encode_unanswered,
    pack_publications,
)
from tidemill.serving.generations.current import Current, write_current

GENERATION = "0123456789abcdef"
REJECTED = rejected.batch(
    rejected.Stage.READ,
    stream="trips",
    partition=1,
    positions=np.array([8], np.int64),
    reasons=[rejected.Reason.BROKEN_JSON],
    details=["found '{', expected one JSON object"],
    origins=["cab-trips/1@8"],
    payloads=[b"{"],
)


def make(folder: Path) -> None:
    """Write one file of each format, from the middle of a stream in which many rows wait."""
    chance = random.Random(14)
    rows = random_rows(14, trips=24, hails=12)
    arrived = arrivals(PROJECT, rows, PARTITIONS, chance)
    polls = random_polls(PROJECT, arrived, end_of(rows), 9, chance)
    plain = PlainStream(PROJECT, SHARDS, PARTITIONS)
    joining = joiner()
    operator = plain.operator(VIEW, SHARD)
    # A poll is missing, so that batches are held; and the first requests, and a release.
    operator.attempt = 2
    taken = [*polls[:6], polls[7]]
    parts = [part for poll in taken for part in plain.operate(elements_of(PROJECT, SHARDS, [poll]))]
    requests = [part for poll in taken for part in request_parts(PROJECT, poll)][1:]
    name = operator.key.view
    stop = SavepointPart(name, SHARD, operator.number + 1, operator.waiting_groups())
    overtaken = next(part for part in parts if part.number == 1)
    joining.receive([*(part for part in parts if part is not overtaken), *requests, stop])
    release = next(r for v, s, r in plain.releases[::-1] if (v, s) == (VIEW, SHARD))
    answer = next(
        part
        for part in parts[::-1]
        if (part.view, part.shard) == (name, SHARD) and part.answers is not None
        if part.answers.num_rows
    )
    element, events = next(
        (data, batch.rows)
        for view, shard, data in elements_of(PROJECT, SHARDS, polls[2:6])
        if (view, shard) == (VIEW, SHARD)
        for batch in decode_batches(data, operator.event_schema)
        if batch.rows is not None and not batch.is_request
    )
    assert operator.held
    assert operator.events
    assert joining.pending
    assert joining.early
    assert joining.closed
    assert any(joining.waiting.values())

    folder.mkdir(parents=True)
    (folder / "releases").mkdir()
    (folder / "releases" / "release.jsonl").write_text(release_line(operator, release) + "\n")
    key = operator.key.text
    request_part = encode_part(requests[0])
    answer_part = encode_part(answer, key)
    for name, data in {
        "kernel_state": encode(operator.state),
        "operator_head": operator.head(),
        "operator_snapshot": operator.snapshot(),
        "logged_release": encode_release(
            operator.key, LoggedRelease(release.number, release.frontier_us, events)
        ),
        "logged_parts": encode_logged_parts(3, [request_part, answer_part]),
        "poll": polls[4].encode(),
        "batches": element,
        "request_part": request_part,
        "answer_part": answer_part,
        "stop_part": encode_part(stop, key),
        "published": pack_publications(operator, release),
        "unanswered": encode_unanswered(Unanswered(requests[0].rows, 1, ("cab", "zone"))),
    }.items():
        (folder / f"{name}.bin").write_bytes(data)
    write_handoff(folder, operator)
    write_joiner(folder, joining)
    write_log(folder, PROJECT, arrived)
    log, positions = Log(folder), {"trips": [3, 4], "rain": [1], "hails": [2, 0]}
    handoff = Handoff(
        kind="stop",
        as_of_us=release.frontier_us,
        positions=positions,
        views={view.name: view.hash for view in PROJECT.views},
        shards=SHARDS,
        segment=1,
        frontiers={view.name: [1, -(2**62)] for view in PROJECT.views},
        polls=7,
        marks={view.name: ["00" * 16, "f0" * 16] for view in PROJECT.views},
        began="0123456789abcdef",
        mode="exact",
        files=file_hashes(folder),
        generation=GENERATION,
        digests=cut_digests(log, positions),
    )
    handoff.write(folder)
    replace(StreamRun.beginning(handoff, "exact", 4096), offline=1).write(folder)
    BuildManifest(
        generation=GENERATION,
        parent="fedcba9876543210",
        because=["trips: rows 0 to 3 of partition 1 were changed"],
        sources=source_records(log, {"trips": [asdict(SourceFile("trips.csv", 3, "0" * 64))]}),
        project=PROJECT.hash,
        views={view.name: view.hash for view in PROJECT.views},
        shards=SHARDS,
        as_of_us=release.frontier_us,
        training_table={"00000.parquet": "0" * 64},
        handoff=handoff.id,
    ).write(folder)
    logged = LoggedPoll(5, {"trips": (7, 9)}, {"trips": (3, -(2**62))}, polls[4].encode(), REJECTED)
    (folder / "logged_poll.bin").write_bytes(logged.encode())
    write_topics(folder, {"trips": BuildTopic("cab-trips", (7, 0))})
    live = LiveLog(folder / "live", PROJECT)
    live.begin({"trips": LiveTopic("cab-trips", 1, (7,))})
    live.write_sealed(Sealed(5, {"trips": [3]}, {"trips": [12]}))
    marked = replace(polls[6], epoch=2, is_marked=True)
    (folder / "marked_poll.bin").write_bytes(marked.encode())

    def element_of(poll: Poll) -> bytes:
        """Return what a poll gives the operator."""
        return next(
            data
            for view, shard, data in elements_of(PROJECT, SHARDS, [poll])
            if (view, shard) == (VIEW, SHARD)
        )

    (folder / "marked_batches.bin").write_bytes(element_of(marked))
    files = SavepointFiles()
    files.keep(folder / "before", operator)
    # The poll that was missing, behind which the one that was held is taken.
    files.add(operator.receive(decode_batches(element_of(polls[6]), operator.event_schema)))
    files.keep(folder / "stops", operator)
    shutil.rmtree(folder / "before")
    writer, outputs = PartWriter(folder / "outputs"), OutputFolder(folder / "outputs")
    of_release = publications_output(PROJECT.views[VIEW], release.publications, SHARD, 7)
    writer.append(1, [of_release])
    (part,) = outputs.files()
    shutil.copy(part.path, folder / OUTPUT_PART)
    outputs.join(1)
    write_current(Current(folder, GENERATION, build=2, offline=1, stream=3))
    (folder / "expected.json").write_text(described(folder))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
