"""Sealing: polls of the poll log become rows of the log, cuts, and what is beside them.

The promises: what is sealed equals what was written down, poll by poll; a seal that is killed is
repeated and gives the same; a poll is removed from the poll log only when its seal has survived a
crash of the machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.errors import DamagedFile, DamagedState
from tidemill.pipelines.io.live.live_cuts import REMEDY, SentPoll, cuts_table
from tidemill.pipelines.io.live.live_records import POLLS, Sealed
from tidemill.pipelines.io.live.poll_files import CUTS, LOST, MENDED, REJECTED, numbered
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.live.sealed_polls import SealedPolls
from tidemill.pipelines.io.log import ROWS, Log, conformed, declared_columns, log_schema
from tidemill.pipelines.io.log_digests import BLOCK_ROWS
from tidemill.pipelines.io.log_files import write_log_file

_SEALED_BYTES: Final = 64 << 20
"""About how many bytes of polls a seal holds in memory."""


def seal_polls(
    live: SealedPolls,
    polls: PollLog,
    project: Project,
    build: Path,
    before_us: int,
    until: int | None,
) -> Sealed:
    """Seal polls; arguments, result and errors as for `pipelines.io.live.live_log.LiveLog.seal`."""
    sealed = live.sealed()
    last = polls.last()
    if sealed.number > (0 if last is None else last.number):
        raise DamagedState(
            f"{live.folder / POLLS}: the last poll is {0 if last is None else last.number}, "
            f"and {sealed.number} are sealed: polls were lost; {REMEDY}"
        )
    polls.remove_before(sealed.number)  # unless the seal before was killed there
    unsealed = itertools.takewhile(
        lambda poll: until is None or poll.number <= until,
        polls.read(after=sealed.number),
    )
    log = Log(build, live.folder, declared_columns(project))
    for piece in _in_pieces(unsealed, before_us):
        sealed = _seal(piece, live, project, sealed, log)
        live.write_sealed(sealed)
        polls.remove_before(sealed.number)
    return sealed


def _seal(
    polls: Sequence[SentPoll], live: SealedPolls, project: Project, before: Sealed, log: Log
) -> Sealed:
    topics = live.topics()
    rows: dict[tuple[str, int], list[pa.RecordBatch]] = {}
    for poll in polls:
        for part in poll.sent.parts:
            if part.rows is not None:
                rows.setdefault((part.source, part.partition), []).append(part.rows)
    for (name, partition), fresh in rows.items():
        at = before.positions[name][partition - topics[name].first]
        _add_rows(live.folder, project.definition(name), partition, at, fresh, log)
    last = polls[-1]
    live.files(CUTS).add(before.number, cuts_table(polls, topics))
    for kind, beside in (
        (REJECTED, [(one.logged.number, one.logged.set_aside) for one in polls]),
        (MENDED, [(one.logged.number, one.logged.mended) for one in polls]),
        (LOST, [(one.logged.number, one.logged.lost) for one in polls]),
    ):
        live.files(kind).add(before.number, numbered(beside))
    ends: dict[str, list[int]] = {name: [] for name in topics}
    for part in last.sent.parts:
        if part.source in topics and part.partition >= topics[part.source].first:
            ends[part.source].append(part.stop)
    offsets = {name: list(last.logged.offsets[name]) for name in topics}
    return Sealed(last.logged.number, ends, offsets)


def _add_rows(
    folder: Path,
    definition: EventStream | Request,
    partition: int,
    at: int,
    fresh: Sequence[pa.RecordBatch],
    log: Log,
) -> None:
    """Write the file that begins with the last whole block before ``at``."""
    first = at // BLOCK_ROWS * BLOCK_ROWS
    there = log.digests(definition.name, partition).rows
    if there < at:
        raise DamagedFile(
            f"{folder / ROWS / definition.name}: partition {partition} has {there} rows, "
            f"and {at} are sealed: rows were lost; {REMEDY}"
        )
    parts = [*([log.read_span(definition.name, partition, first, at)] if at > first else ())]
    names = log_schema(definition).names
    # Polls of an earlier version of the project have the columns of that one.
    parts += [conformed(batch, definition.schema).select(names) for batch in fresh]
    rows = pa.concat_batches(parts)
    path = folder / ROWS / definition.name / f"{partition:05d}-{first:012d}.arrow"
    with write_log_file(path, definition, rows.num_rows, first=first, durable=True) as writer:
        declared = pa.RecordBatch.from_arrays(
            rows.columns[:-2], schema=pa.schema(list(rows.schema)[:-2])
        )
        writer.write(declared, rows.column(rows.num_columns - 1).to_numpy())


def _in_pieces(polls: Iterable[LoggedPoll], before_us: int) -> Iterator[list[SentPoll]]:
    """Yield the polls that were received before an instant, in pieces of bounded size."""
    piece: list[SentPoll] = []
    size = 0
    for poll in polls:
        sent = poll.sent()
        if sent.sent_us >= before_us:
            break
        piece.append(SentPoll(poll, sent))
        size += len(poll.poll)
        if size >= _SEALED_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
