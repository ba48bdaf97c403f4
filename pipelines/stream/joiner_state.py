"""The state of the joining stage as bytes: a frame (`pipelines.io.framing`) that names its views.

The order of the groups is kept, because closed groups are forgotten in that order. Equal states
have equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.framing import Bytes, Kind, decode_document, encode_document
from tidemill.pipelines.stream.answer_parts import AnswerPart, SavepointPart

_REMEDY: Final = "start it from handed-over states"
_WORD: Final = np.dtype("<i8")


@dataclass
class Pending:
    """The requests of one group, and their answers so far.

    Attributes:
        rows: The requests.
        values: int64 patterns, ``(rows, columns)``, over all views' columns in order.
        nulls: uint8, ``(rows, columns)``: 1 = null.
        as_of: int64, ``(rows, views)``: the instant of each view's answer.
        release: int64, ``(rows, views)``: the release that answered.
        shard: int64, ``(rows, views)``: the shard that answered; -1 if none has.
        missing: For each view, the number of rows that it has not answered.
    """

    rows: pa.RecordBatch
    values: Int64Array
    nulls: npt.NDArray[np.uint8]
    as_of: Int64Array
    release: Int64Array
    shard: Int64Array
    missing: list[int]


class JoinerState(NamedTuple):
    """The state of an `AnswerJoiner` (`pipelines.stream.answer_join`), attribute by attribute."""

    pending: dict[int, Pending]
    early: dict[int, list[AnswerPart]]
    closed: dict[int, bool]
    waiting: dict[tuple[int, int], dict[int, int]]
    savepoints: dict[tuple[int, int], SavepointPart]
    frontiers: Int64Array
    numbers: Int64Array


def encode_joiner(state: JoinerState, project: Project) -> bytes:
    """Encode a joiner's state.

    Args:
        state: The state.
        project: The project.

    Returns:
        The state as a frame. Its fields list the pending groups and the early answers; its blobs
        hold their rows: for a group the requests, the words (values, ``as_of``, release, shard) and
        the nulls, for an early answer its rows.
    """
    blobs: list[Bytes] = [
        np.fromiter(state.closed, _WORD, len(state.closed)).tobytes(),
        bytes(state.closed.values()),
    ]
    for pending in state.pending.values():
        words = (pending.values, pending.as_of, pending.release, pending.shard)
        blobs += [
            batch_bytes(pending.rows),
            b"".join(matrix.astype(_WORD).tobytes() for matrix in words),
            pending.nulls.tobytes(),
        ]
    early = []
    for group, parts in state.early.items():
        early.append(
            [group, [[part.view, part.shard, part.number, part.frontier_us] for part in parts]]
        )
        blobs += [batch_bytes(part.answers) for part in parts]
    fields = {
        "views": [[view.name, view.hash] for view in project.views],
        "shards": state.numbers.shape[1],
        "pending": [[group, pending.missing] for group, pending in state.pending.items()],
        "early": early,
        "waiting": [
            [*at, sorted(frontiers.items())]
            for at, frontiers in sorted(state.waiting.items())
            if frontiers
        ],
        "stops": [
            [*at, part.number, list(part.groups)] for at, part in sorted(state.savepoints.items())
        ],
        "frontiers": state.frontiers.tolist(),
        "numbers": state.numbers.tolist(),
    }
    return encode_document(Kind.JOINER_STATE, project.name, fields, blobs)


def decode_joiner(data: bytes, project: Project, shards: int) -> JoinerState:
    """Decode a joiner's state.

    Args:
        data: The bytes.
        project: The project that the state must belong to.
        shards: The number of shards that each view must have.

    Raises:
        StateMismatch: It is of another project, of other views or another number of shards.
        StateVersionError: Its version is not supported.
        DamagedState: The bytes are not a joiner's state.
    """
    found = decode_document(
        data, Kind.JOINER_STATE, "the state of the joining stage", _REMEDY, project.name
    )
    fields = found.fields
    _check_views(fields, project, shards)
    blobs = iter(found.blobs)
    closed = zip(np.frombuffer(next(blobs), _WORD).tolist(), bytes(next(blobs)), strict=True)
    return JoinerState(
        closed={group: bool(answered) for group, answered in closed},
        pending={
            group: _pending(batch_of(next(blobs)), next(blobs), next(blobs), missing, project)
            for group, missing in fields["pending"]
        },
        early={
            group: [
                AnswerPart(view, shard, number, frontier_us, batch_of(next(blobs)))
                for view, shard, number, frontier_us in parts
            ]
            for group, parts in fields["early"]
        },
        waiting={(view, shard): dict(waiting) for view, shard, waiting in fields["waiting"]},
        savepoints={
            (view, shard): SavepointPart(view, shard, number, tuple(groups))
            for view, shard, number, groups in fields["stops"]
        },
        frontiers=np.array(fields["frontiers"], np.int64),
        numbers=np.array(fields["numbers"], np.int64),
    )


def _check_views(fields: Mapping[str, Any], project: Project, shards: int) -> None:
    views = [[view.name, view.hash] for view in project.views]
    if fields["views"] != views or fields["shards"] != shards:
        raise StateMismatch(
            f"the state of the joining stage is of the views {_named(fields['views'])} in "
            f"{fields['shards']} shards, the project has {_named(views)} in {shards}; {_REMEDY}"
        )


def _named(views: list[list[str]]) -> str:
    return ", ".join(f"{name} ({digest})" for name, digest in views)


def _pending(
    rows: pa.RecordBatch, words: pa.Buffer, nulls: pa.Buffer, missing: list[int], project: Project
) -> Pending:
    count, columns, views = rows.num_rows, len(project.columns), len(project.views)
    # The joiner writes answers into these arrays, so copy them from the read-only bytes.
    widths = (columns, views, views, views)
    matrices = np.split(np.frombuffer(words, _WORD), np.cumsum([count * w for w in widths])[:-1])
    values, as_of, release, shard = (
        matrix.astype(np.int64).reshape(count, width)
        for matrix, width in zip(matrices, widths, strict=True)
    )
    return Pending(
        rows=rows,
        values=values,
        nulls=np.frombuffer(nulls, np.uint8).reshape(count, columns).copy(),
        as_of=as_of,
        release=release,
        shard=shard,
        missing=list(missing),
    )
