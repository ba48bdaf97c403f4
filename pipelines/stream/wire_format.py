"""What travels between the stages as bytes: the parts of answers, and publications.

The joining stage takes parts (`pipelines.stream.answer_join`); the publishing stage takes what a
release published. Both are pickled tuples around Arrow IPC streams (`pipelines.io.coders`): engines
move bytes cheapest.
"""

from __future__ import annotations

import pickle
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN
from tidemill.features.feast_objects import EVENT_TIMESTAMP
from tidemill.pipelines.io.coders import RecordBatchCoder
from tidemill.pipelines.stream.answer_join import AnswerPart, Part, RequestPart, StopPart
from tidemill.pipelines.stream.operator import Release, ShardOperator


def encode_part(part: Part) -> bytes:
    """Write a part for the joining stage."""
    coder = RecordBatchCoder()
    if isinstance(part, RequestPart):
        return pickle.dumps((part.group, coder.encode(part.rows)), protocol=5)
    if isinstance(part, StopPart):
        return pickle.dumps((part.view, part.shard, part.number, part.groups), protocol=5)
    answers = part.answers
    rows = None if answers is None or answers.num_rows == 0 else coder.encode(answers)
    return pickle.dumps((part.view, part.shard, part.number, part.frontier_us, rows), protocol=5)


def decode_part(data: bytes) -> Part:
    """Read a part."""
    fields = pickle.loads(data)
    coder = RecordBatchCoder()
    if len(fields) == 2:
        return RequestPart(fields[0], coder.decode(fields[1]))
    if len(fields) == 4:
        return StopPart(*fields)
    view, shard, number, frontier, rows = fields
    return AnswerPart(view, shard, number, frontier, None if rows is None else coder.decode(rows))


class Published(NamedTuple):
    """What a release published.

    Attributes:
        view: The view's place in the project.
        shard: The shard.
        since_us: See `pipelines.stream.operator.Release`.
        frontier_us: The frontier.
        rows: Kernel publications.
        is_news: False where the rows only repeat what releases have published, for the online
            store: they are no part of the publications' log.
    """

    view: int
    shard: int
    since_us: int | None
    frontier_us: int
    rows: pa.RecordBatch
    is_news: bool = True


def pack_publications(view: int, shard: int, release: Release) -> bytes:
    """Write what a release published as one element."""
    return _pack(
        Published(view, shard, release.since_us, release.frontier_us, release.publications)
    )


def pack_everything(view: int, operator: ShardOperator, shown_us: int | None) -> bytes:
    """Write every entity of a shard: the online store has lost writes, or shows ``shown_us``.

    A run that was killed has published past the state that this one began with. A late event
    that it applied at one frontier was applied at another one this time, so of the two
    publications the one that knows less may be the newer. From here on the values are those of
    this run, from the first instant at which no reader can have seen otherwise.
    """
    rows = operator.everything()
    place = rows.schema.get_field_index(EVENT_TIMESTAMP)
    at = np.maximum(rows.column(place).to_numpy(), TIME_MIN if shown_us is None else shown_us)
    rows = rows.set_column(place, rows.schema.field(place), pa.array(at))
    frontier = operator.state.frontier_us
    return _pack(Published(view, operator.key.shard, None, frontier, rows, is_news=False))


def _pack(published: Published) -> bytes:
    rows = RecordBatchCoder().encode(published.rows)
    return pickle.dumps(tuple(published._replace(rows=rows)), protocol=5)


def unpack_publications(data: bytes) -> Published:
    """Read a published element."""
    published = Published(*pickle.loads(data))
    return published._replace(rows=RecordBatchCoder().decode(published.rows))
