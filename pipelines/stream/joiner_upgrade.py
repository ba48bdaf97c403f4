"""The joiners of a stream for another version of its project, with the requests that they hold.

A request that the stream before had not answered is answered by the new version. What views of the
same definition had answered of it counts; every other view answers it anew. So no request is lost,
and none is answered by two versions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import POSITION, RECEIVED, conformed
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.answer_parts import joiner_of
from tidemill.pipelines.stream.joiner_key import JoinerKey
from tidemill.pipelines.stream.joiner_state import Pending, StoredJoiner, read_joiner_state
from tidemill.pipelines.stream.joiners import Joiners
from tidemill.pipelines.stream.sequence import request_rows, split_by_shard

_REMEDY: Final = "restore the folder from a copy"


def read_held(folder: Path, project: str, joiners: int) -> list[StoredJoiner]:
    """Read what the joiners of a stream held at a savepoint, whatever its views were.

    Args:
        folder: The states at the savepoint.
        project: The project's name.
        joiners: How many joiners the stream had.

    Raises:
        StateError: A state is damaged, or of another version or project.
    """
    paths = [folder / key.state_name for key in JoinerKey.all(joiners)]
    return [
        read_joiner_state(
            path.read_bytes(), project, f"{path}: the state of the joining stage", _REMEDY
        )
        for path in paths
        if path.exists()
    ]


def has_pending(held: Iterable[StoredJoiner]) -> bool:
    """Tell whether some request waits for an answer."""
    return any(one.state.pending for one in held)


def least_frontier(held: Iterable[StoredJoiner]) -> int:
    """Return the least frontier of all views and shards: earlier requests were answered by all."""
    return int(min(one.state.frontiers.min() for one in held))


def upgraded_joiners(
    held: Sequence[StoredJoiner],
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
        for group, is_answered in one.state.closed.items():
            _joiner(empty, group).closed[group] = is_answered
        for group, pending in one.state.pending.items():
            joiner = _joiner(empty, group)
            joiner.pending[group] = _moved(pending, one.views, joiner.project, carried)
            if group in one.state.given_up:
                joiner.given_up |= {group}
    return empty


def _joiner(joiners: Joiners, group: int) -> AnswerJoiner:
    return joiners.all[joiner_of(group, len(joiners.all)).number]


def _moved(
    pending: Pending,
    views: Mapping[str, tuple[str, list[str]]],
    project: Project,
    carried: Collection[str],
) -> Pending:
    """Return requests with the columns of another version's request and views.

    Args:
        pending: The requests.
        views: The views that they have columns of (`StoredJoiner.views`).
        project: The project of the other version.
        carried: The views whose answers count.
    """
    names = [column for _, columns in views.values() for column in columns]
    places = {name: place for place, name in enumerate(views)}
    count, width = pending.rows.num_rows, len(project.columns)
    values, nulls = np.zeros((count, width), np.int64), np.zeros((count, width), np.uint8)
    as_of, release = (np.zeros((count, len(project.views)), np.int64) for _ in range(2))
    shard = np.full((count, len(project.views)), -1, np.int64)
    missing, at = [], 0
    for place, view in enumerate(project.views):
        former = places.get(view.name) if view.name in carried else None
        columns = [column.name for column in view.columns]
        if former is None:
            missing.append(count)
        else:
            picked = [names.index(name) for name in columns]
            values[:, at : at + len(columns)] = pending.values[:, picked]
            nulls[:, at : at + len(columns)] = pending.nulls[:, picked]
            as_of[:, place] = pending.as_of[:, former]
            release[:, place] = pending.release[:, former]
            shard[:, place] = pending.shard[:, former]
            missing.append(pending.missing[former])
        at += len(columns)
    rows = conformed(pending.rows, project.request.schema)
    return Pending(rows, values, nulls, as_of, release, shard, missing)


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
