"""The state of a joiner as bytes: a frame (`pipelines.io.framing`) that names its views.

A joiner holds its views by their place in the project. The bytes name each view with its definition
and columns, so that a project whose views have another order reads the state right. The order of
the groups is kept, because closed groups are forgotten in that order. Equal states have equal
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.errors import StateMismatch
from tidemill.features.kernel.columns import keep
from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.epochs import epoch_field
from tidemill.pipelines.io.framing import Bytes, Kind, decode_document, encode_document
from tidemill.pipelines.stream.answer_parts import AnswerPart, SavepointPart
from tidemill.pipelines.stream.joiner_key import ONLY_JOINER, JoinerKey

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

    def only(self, mask: BoolArray) -> Pending:
        """Return some of the requests, of which there is at least one."""
        if mask.all():
            return self
        shard = self.shard[mask]
        return Pending(
            keep(self.rows, mask),
            self.values[mask],
            self.nulls[mask],
            self.as_of[mask],
            self.release[mask],
            shard,
            (shard == -1).sum(axis=0).tolist(),
        )


class JoinerState(NamedTuple):
    """The state of an `AnswerJoiner` (`pipelines.stream.answer_join`), attribute by attribute.

    It has no place for parts that wait behind a mark: while some do, no state is written.
    """

    pending: dict[int, Pending]
    early: dict[int, list[AnswerPart]]
    closed: dict[int, bool]
    waiting: dict[tuple[str, int], dict[int, int]]
    savepoints: dict[tuple[str, int], SavepointPart]
    frontiers: Int64Array
    numbers: Int64Array
    epoch: int = 0
    given_up: frozenset[int] = frozenset()


def encode_joiner(state: JoinerState, project: Project, key: JoinerKey = ONLY_JOINER) -> bytes:
    """Encode a joiner's state.

    Args:
        state: The state.
        project: The project.
        key: The joiner. A frame of the only joiner does not name it.

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
        "views": [[view.name, view.hash, _columns(view)] for view in project.views],
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
        **epoch_field(state.epoch),
        # Not in states of versions that answered all requests of a group together.
        **({"given_up": sorted(state.given_up)} if state.given_up else {}),
        **({} if key == ONLY_JOINER else {"joiner": [key.number, key.joiners]}),
    }
    return encode_document(Kind.JOINER_STATE, project.name, fields, blobs)


class StoredJoiner(NamedTuple):
    """A joiner's state as it is written: its views and columns are those of another project.

    Attributes:
        key: The joiner.
        views: View to the hash of its definition and its columns, in the order of the state.
        shards: The number of shards that each view had.
        state: The state, which is read-only.
    """

    key: JoinerKey
    views: dict[str, tuple[str, list[str]]]
    shards: int
    state: JoinerState


def read_joiner_state(
    data: bytes,
    project: str,
    what: str = "the state of the joining stage",
    remedy: str = _REMEDY,
) -> StoredJoiner:
    """Decode a joiner's state, whatever its views are.

    Args:
        data: The bytes.
        project: The name of the project that the state must belong to.
        what: What it is; used in the error.
        remedy: What to do about it; likewise.

    Raises:
        StateMismatch: It is of another project.
        StateVersionError: Its version is not supported.
        DamagedState: The bytes are not a joiner's state.
    """
    found = decode_document(data, Kind.JOINER_STATE, what, remedy, project)
    fields, blobs = found.fields, iter(found.blobs)
    views = {name: (digest, columns) for name, digest, columns in fields["views"]}
    width = sum(len(columns) for _, columns in views.values())
    closed = zip(np.frombuffer(next(blobs), _WORD).tolist(), bytes(next(blobs)), strict=True)
    state = JoinerState(
        closed={group: bool(answered) for group, answered in closed},
        pending={
            group: _pending(batch_of(next(blobs)), next(blobs), next(blobs), missing, width)
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
        epoch=fields.get("epoch", 0),
        given_up=frozenset(fields.get("given_up", ())),
    )
    key = JoinerKey(*fields.get("joiner", (ONLY_JOINER.number, ONLY_JOINER.joiners)))
    return StoredJoiner(key, views, fields["shards"], state)


def decode_joiner(
    data: bytes, project: Project, shards: int, key: JoinerKey = ONLY_JOINER
) -> JoinerState:
    """Decode a joiner's state.

    Args:
        data: The bytes.
        project: The project that the state must belong to.
        shards: The number of shards that each view must have.
        key: The joiner that it must be of.

    Raises:
        StateMismatch: It is of another project, of other views, of another number of shards, or
            of another joiner.
        StateVersionError: Its version is not supported.
        DamagedState: The bytes are not a joiner's state.
    """
    stored = read_joiner_state(data, project.name)
    if stored.key != key:
        raise StateMismatch(f"the state is of {stored.key}, and {key} begins with it; {_REMEDY}")
    order, state = _check_views(stored, project, shards), stored.state
    return state._replace(
        pending={group: order.of(pending) for group, pending in state.pending.items()},
        frontiers=state.frontiers[order.views],
        numbers=state.numbers[order.views],
    )


@dataclass(frozen=True)
class _Order:
    """Where the views and columns of a project stand in a state.

    Attributes:
        views: For each view of the project, its place in the state.
        columns: For each column of the project, its place in the state.
    """

    views: list[int]
    columns: list[int]

    def of(self, pending: Pending) -> Pending:
        """Return requests with views and columns in the project's order."""
        # Picking columns copies them from the read-only bytes: the joiner writes answers into them.
        return Pending(
            rows=pending.rows,
            values=pending.values[:, self.columns],
            nulls=pending.nulls[:, self.columns],
            as_of=pending.as_of[:, self.views],
            release=pending.release[:, self.views],
            shard=pending.shard[:, self.views],
            missing=[pending.missing[place] for place in self.views],
        )


def _columns(view: FeatureView) -> list[str]:
    return [column.name for column in view.columns]


def _check_views(found: StoredJoiner, project: Project, shards: int) -> _Order:
    stored = {name: digest for name, (digest, _) in found.views.items()}
    views = {view.name: view.hash for view in project.views}
    if stored != views or found.shards != shards:
        raise StateMismatch(
            f"the state of the joining stage is of the views {_named(stored)} in "
            f"{found.shards} shards, the project has {_named(views)} in {shards}"
            f"{_difference(stored, views)}; {_REMEDY}"
        )
    places = {name: place for place, name in enumerate(stored)}
    columns = [column for _, names in found.views.values() for column in names]
    return _Order(
        [places[view.name] for view in project.views],
        [columns.index(name) for view in project.views for name in _columns(view)],
    )


def _named(views: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({digest})" for name, digest in views.items())


def _difference(stored: Mapping[str, str], views: Mapping[str, str]) -> str:
    """Name the views that only one side has, or that differ."""
    named = [
        f"{what} {', '.join(sorted(names))}"
        for what, names in (
            ("the state lacks", views.keys() - stored.keys()),
            ("the project lacks", stored.keys() - views.keys()),
            (
                "other definitions have",
                {name for name in stored.keys() & views.keys() if stored[name] != views[name]},
            ),
        )
        if names
    ]
    return f": {'; '.join(named)}" if named else ""


def _pending(
    rows: pa.RecordBatch, words: pa.Buffer, nulls: pa.Buffer, missing: list[int], columns: int
) -> Pending:
    count, views = rows.num_rows, len(missing)
    widths = (columns, views, views, views)
    ends = np.cumsum([count * width for width in widths])[:-1]
    values, as_of, release, shard = (
        matrix.astype(np.int64, copy=False).reshape(count, width)
        for matrix, width in zip(np.split(np.frombuffer(words, _WORD), ends), widths, strict=True)
    )
    return Pending(
        rows=rows,
        values=values,
        nulls=np.frombuffer(nulls, np.uint8).reshape(count, columns),
        as_of=as_of,
        release=release,
        shard=shard,
        missing=missing,
    )
