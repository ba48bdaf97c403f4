"""The joiners of a stream for another version of its project, with the requests that they hold.

A request that the stream before had not answered is answered by the new version. What views of the
same definition had answered of it counts; every other view answers it anew. So no request is lost,
and none is answered by two versions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.batch_bytes import batch_of
from tidemill.pipelines.io.framing import Kind, decode_document
from tidemill.pipelines.io.log import POSITION, RECEIVED
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.answer_parts import joiner_of
from tidemill.pipelines.stream.joiner_key import JoinerKey
from tidemill.pipelines.stream.joiner_state import Pending
from tidemill.pipelines.stream.joiners import Joiners
from tidemill.pipelines.stream.sequence import request_rows, split_by_shard

_REMEDY: Final = "restore the folder from a copy"
_WORD: Final = np.dtype("<i8")


class _View(NamedTuple):
    """A view in the state of the stream before.

    Attributes:
        name: Its name.
        place: Its place among the views.
        columns: Its columns, and their places among those of all views.
    """

    name: str
    place: int
    columns: dict[str, int]


class _Held(NamedTuple):
    """What a joiner of the stream before held.

    Attributes:
        pending: Group to its requests, with the columns of that stream's views.
        closed: The newest closed groups.
        views: The views, by name.
        frontiers: int64, ``(views, shards)``.
    """

    pending: Mapping[int, Pending]
    closed: Mapping[int, bool]
    views: Mapping[str, _View]
    frontiers: Int64Array


def read_held(folder: Path, project: str, joiners: int) -> list[_Held]:
    """Read what the joiners of a stream held at a savepoint, whatever its views were.

    Args:
        folder: The states at the savepoint.
        project: The project's name.
        joiners: How many joiners the stream had.

    Raises:
        StateError: A state is damaged, or of another version or project.
    """
    paths = [folder / key.state_name for key in JoinerKey.all(joiners)]
    return [_read(path, project) for path in paths if path.exists()]


def _read(path: Path, project: str) -> _Held:
    what = f"{path}: the state of the joining stage"
    found = decode_document(path.read_bytes(), Kind.JOINER_STATE, what, _REMEDY, project)
    fields, blobs = found.fields, iter(found.blobs)
    names = [column for _, _, columns in fields["views"] for column in columns]
    views = {
        name: _View(name, place, {column: names.index(column) for column in columns})
        for place, (name, _, columns) in enumerate(fields["views"])
    }
    closed = zip(np.frombuffer(next(blobs), _WORD).tolist(), bytes(next(blobs)), strict=True)
    answered = {group: bool(is_answered) for group, is_answered in closed}
    pending = {
        group: _pending(batch_of(next(blobs)), next(blobs), next(blobs), missing, len(names))
        for group, missing in fields["pending"]
    }
    return _Held(pending, answered, views, np.array(fields["frontiers"], np.int64))


def _pending(
    rows: pa.RecordBatch, words: pa.Buffer, nulls: pa.Buffer, missing: list[int], columns: int
) -> Pending:
    count, views = rows.num_rows, len(missing)
    widths = (columns, views, views, views)
    ends = np.cumsum([count * width for width in widths])[:-1]
    values, as_of, release, shard = (
        part.astype(np.int64).reshape(count, width)
        for part, width in zip(np.split(np.frombuffer(words, _WORD), ends), widths, strict=True)
    )
    flags = np.frombuffer(nulls, np.uint8).reshape(count, columns)
    return Pending(rows, values, flags, as_of, release, shard, missing)


def has_pending(held: Iterable[_Held]) -> bool:
    """Tell whether some request waits for an answer."""
    return any(one.pending for one in held)


def least_frontier(held: Iterable[_Held]) -> int:
    """Return the least frontier of all views and shards: earlier requests were answered by all."""
    return int(min(one.frontiers.min() for one in held))


def upgraded_joiners(
    held: Sequence[_Held],
    empty: Joiners,
    carried: Collection[str],
    polls: int,
    frontiers: Mapping[str, Sequence[int]],
) -> Joiners:
    """Return the joiners of the new version, which go on where those of the stream before were.

    Args:
        held: What those held.
        empty: The joiners of the new version, as many as it has, empty.
        carried: The views whose definition is the same.
        polls: The number of the last poll that the states contain.
        frontiers: View of the new version to the frontier of each shard.
    """
    for joiner in empty.all:
        joiner.numbers[:] = polls
        for place, view in enumerate(joiner.project.views):
            joiner.frontiers[place] = frontiers[view.name]
    for one in held:
        for group, is_answered in one.closed.items():
            _joiner(empty, group).closed[group] = is_answered
        for group, pending in one.pending.items():
            joiner = _joiner(empty, group)
            joiner.pending[group] = _moved(pending, one.views, joiner.project, carried)
    return empty


def _joiner(joiners: Joiners, group: int) -> AnswerJoiner:
    return joiners.all[joiner_of(group, len(joiners.all)).number]


def _moved(
    pending: Pending, views: Mapping[str, _View], project: Project, carried: Collection[str]
) -> Pending:
    """Return requests with the columns of another version's views."""
    count, width = pending.rows.num_rows, len(project.columns)
    values, nulls = np.zeros((count, width), np.int64), np.zeros((count, width), np.uint8)
    as_of, release = (np.zeros((count, len(project.views)), np.int64) for _ in range(2))
    shard = np.full((count, len(project.views)), -1, np.int64)
    missing, at = [], 0
    for place, view in enumerate(project.views):
        former = views.get(view.name) if view.name in carried else None
        columns = [column.name for column in view.columns]
        if former is None:
            missing.append(count)
        else:
            picked = [former.columns[name] for name in columns]
            values[:, at : at + len(columns)] = pending.values[:, picked]
            nulls[:, at : at + len(columns)] = pending.nulls[:, picked]
            as_of[:, place] = pending.as_of[:, former.place]
            release[:, place] = pending.release[:, former.place]
            shard[:, place] = pending.shard[:, former.place]
            missing.append(pending.missing[former.place])
        at += len(columns)
    return Pending(pending.rows, values, nulls, as_of, release, shard, missing)


def releases_named(joiners: Joiners) -> set[tuple[str, int, int]]:
    """Return the releases that answers of pending requests name: view, shard and number."""
    named = set()
    for joiner in joiners.all:
        for pending in joiner.pending.values():
            for place, view in enumerate(joiner.project.views):
                given = pending.shard[:, place] >= 0
                pairs = zip(
                    pending.shard[given, place].tolist(),
                    pending.release[given, place].tolist(),
                    strict=True,
                )
                named |= {(view.name, shard, number) for shard, number in pairs}
    return named


def asked_of(
    joiners: Joiners, view: FeatureView, shards: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the requests that a view has yet to answer, by shard, as its operators take them.

    Args:
        joiners: The joiners that hold the requests.
        view: The view.
        shards: How many shards it has.

    Yields:
        The shard, and rows of `pipelines.stream.sequence.REQUEST_ROWS`.
    """
    for joiner in joiners.all:
        place = [one.name for one in joiner.project.views].index(view.name)
        for group in sorted(joiner.pending):
            pending = joiner.pending[group]
            lacks = pending.shard[:, place] < 0
            if not lacks.any():
                continue
            rows = pending.rows.filter(pa.array(lacks))
            asked = request_rows(
                joiner.project,
                view,
                rows,
                hashing.bits(rows.column(POSITION)),
                np.full(rows.num_rows, group, np.int64),
                hashing.bits(rows.column(RECEIVED)),
            )
            of_group = split_by_shard(asked, shards, np.zeros(rows.num_rows, np.int64))
            for shard, mine in enumerate(of_group.get(0, ())):
                if mine is not None:
                    yield shard, mine
