"""What travels between the stages as bytes: the parts of answers, publications, lost requests.

The joining stage takes parts (`pipelines.stream.answer_parts`); the publishing stage takes what a
release published. Each is a frame (`pipelines.io.framing`) whose kind says what it holds: a few
fields and an Arrow IPC stream. What an operator sends has the operator's key in its header, so that
no stage takes it for another view's or another definition's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.features.feast_objects import EVENT_TIMESTAMP
from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.framing import Kind, decode_document, encode_document
from tidemill.pipelines.stream.answer_parts import (
    AnswerPart,
    Part,
    RequestPart,
    SavepointPart,
    Unanswered,
)
from tidemill.pipelines.stream.operator import Release, ShardOperator
from tidemill.pipelines.stream.operator_key import OperatorKey

_PARTS: Final = (Kind.REQUEST_PART, Kind.ANSWER_PART, Kind.SAVEPOINT_PART)
_REMEDY: Final = "run the stream from its last savepoint, or from its beginning"


def encode_part(part: Part, key: str = "") -> bytes:
    """Write a part for the joining stage.

    Args:
        part: The part.
        key: The `OperatorKey.text` of the operator that sends it; empty where none does.

    Returns:
        The part as a frame.
    """
    if isinstance(part, RequestPart):
        return encode_document(
            Kind.REQUEST_PART, key, {"group": part.group}, [batch_bytes(part.rows)]
        )
    place: dict[str, Any] = {"view": part.view, "shard": part.shard, "number": part.number}
    if isinstance(part, SavepointPart):
        return encode_document(Kind.SAVEPOINT_PART, key, {**place, "groups": part.groups})
    rows = batch_bytes(part.answers if part.answers is not None and part.answers.num_rows else None)
    place["frontier_us"] = part.frontier_us
    return encode_document(Kind.ANSWER_PART, key, place, [rows])


def decode_part(data: bytes | pa.Buffer, project: Project | None = None) -> Part:
    """Read a part.

    Args:
        data: The part as a frame.
        project: Whose views the part must be of, where its sender's key stands in it.

    Returns:
        The part; its rows refer to ``data``.

    Raises:
        StateMismatch: Another view, or another definition of the view, sent it.
        StateVersionError: It has a version that is not read.
        DamagedState: These bytes are not a part.
    """
    kind, key, fields, blobs = decode_document(data, _PARTS, "a part of an answer", _REMEDY)
    if kind is Kind.REQUEST_PART:
        return RequestPart(fields["group"], batch_of(blobs[0]))
    _check_sender(key, fields["view"], project)
    if kind is Kind.SAVEPOINT_PART:
        return SavepointPart(**{**fields, "groups": tuple(fields["groups"])})
    return AnswerPart(**fields, answers=batch_of(blobs[0]))


def _check_sender(key: str, view: int, project: Project | None) -> None:
    if not key or project is None:
        return
    sender = OperatorKey.parse(key)
    known = project.views[view] if view < len(project.views) else None
    if known is None or (known.name, known.hash) != (sender.view, sender.hash):
        here = "there is none" if known is None else f"{known.name!r} of definition {known.hash}"
        raise StateMismatch(
            f"a message is of view {sender.view!r} of definition {sender.hash}, number {view} "
            f"here is {here}; {_REMEDY}"
        )


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


def pack_publications(view: int, shard: int, release: Release, key: str = "") -> bytes:
    """Write what a release published as one element; see `encode_part` for ``key``."""
    return _pack(
        Published(view, shard, release.since_us, release.frontier_us, release.publications), key
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
    published = Published(view, operator.key.shard, None, frontier, rows, is_news=False)
    return _pack(published, operator.key.text)


def _pack(published: Published, key: str) -> bytes:
    fields = published._asdict()
    rows = fields.pop("rows")
    return encode_document(Kind.PUBLISHED, key, fields, [batch_bytes(rows)])


def unpack_publications(data: bytes, project: Project | None = None) -> Published:
    """Read a published element; see `decode_part` for ``project`` and the errors."""
    found = decode_document(data, Kind.PUBLISHED, "publications of a release", _REMEDY)
    _check_sender(found.key, found.fields["view"], project)
    return Published(**found.fields, rows=batch_of(found.blobs[0]))


def encode_unanswered(lost: Unanswered) -> bytes:
    """Write requests that will not be answered."""
    fields = {"partition": lost.partition, "views": lost.views}
    return encode_document(Kind.UNANSWERED, "", fields, [batch_bytes(lost.rows)])


def decode_unanswered(data: bytes) -> Unanswered:
    """Read requests that will not be answered; see `decode_part` for the errors."""
    found = decode_document(data, Kind.UNANSWERED, "requests without an answer", _REMEDY)
    partition, views = found.fields["partition"], tuple(found.fields["views"])
    return Unanswered(batch_of(found.blobs[0]), partition, views)


def encode_logged_parts(number: int, parts: Iterable[bytes]) -> bytes:
    """Write what a bundle brought to the joining stage, for its log.

    Args:
        number: Counts the entries since the last snapshot.
        parts: Encoded parts.

    Returns:
        The entry.
    """
    return encode_document(Kind.LOGGED_PARTS, "", {"number": number}, parts)


def decode_logged_parts(entry: bytes) -> tuple[int, list[pa.Buffer]]:
    """Read an entry of the joining stage's log; see `decode_part` for the errors."""
    found = decode_document(entry, Kind.LOGGED_PARTS, "the joining stage's log", _REMEDY)
    return found.fields["number"], found.blobs
