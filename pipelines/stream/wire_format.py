"""Messages between stages as bytes: parts of answers, publications, given-up requests.

The joining stage takes parts (`pipelines.stream.answer_parts`); the publishing stage takes the
publications of a release. Each message is a frame (`pipelines.io.framing`) with a few fields and an
Arrow IPC stream. A message of an operator has the operator's key in its header, so that no stage
mistakes it for that of another view or definition.
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
    """Encode a part for the joining stage.

    Args:
        part: The part.
        key: The `OperatorKey.text` of the sender; empty if the sender is not an operator.
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
    """Decode a part.

    Args:
        data: The part as a frame.
        project: The project whose view must be the sender; None to skip this check.

    Returns:
        The part; its rows refer to ``data``.

    Raises:
        StateMismatch: The sender is another view, or another definition of the view.
        StateVersionError: The version is not supported.
        DamagedState: The bytes are not a part.
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
    """The publications of a release.

    Attributes:
        view: The view's index in the project.
        shard: The shard.
        since_us: See `pipelines.stream.operator.Release`.
        frontier_us: The frontier.
        rows: Kernel publications.
        is_news: False if the rows repeat earlier publications to repair the online store; then
            they do not belong to the log of publications.
    """

    view: int
    shard: int
    since_us: int | None
    frontier_us: int
    rows: pa.RecordBatch
    is_news: bool = True


def pack_publications(view: int, shard: int, release: Release, key: str = "") -> bytes:
    """Encode the publications of a release; see `encode_part` for ``key``."""
    return _pack(
        Published(view, shard, release.since_us, release.frontier_us, release.publications), key
    )


def pack_everything(view: int, operator: ShardOperator, shown_us: int | None) -> bytes:
    """Encode every entity of a shard, to repair the online store.

    Args:
        view: The view's index in the project.
        operator: The operator.
        shown_us: The frontier up to which a killed run has published; None if there was none. That
            run may have applied a late event at another frontier than this run, so its publication
            may be newer than this run's and contain fewer events. So publish the values of this
            run as of ``shown_us``, the first instant at which no reader has seen other values.
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
    """Decode publications; see `decode_part` for ``project`` and the errors."""
    found = decode_document(data, Kind.PUBLISHED, "publications of a release", _REMEDY)
    _check_sender(found.key, found.fields["view"], project)
    return Published(**found.fields, rows=batch_of(found.blobs[0]))


def encode_unanswered(lost: Unanswered) -> bytes:
    """Encode requests that are given up."""
    fields = {"partition": lost.partition, "views": lost.views}
    return encode_document(Kind.UNANSWERED, "", fields, [batch_bytes(lost.rows)])


def decode_unanswered(data: bytes) -> Unanswered:
    """Decode requests that are given up; see `decode_part` for the errors."""
    found = decode_document(data, Kind.UNANSWERED, "requests without an answer", _REMEDY)
    partition, views = found.fields["partition"], tuple(found.fields["views"])
    return Unanswered(batch_of(found.blobs[0]), partition, views)


def encode_logged_parts(number: int, parts: Iterable[bytes]) -> bytes:
    """Encode an entry of the joining stage's log: the parts of a bundle.

    Args:
        number: The number of the entry since the last snapshot.
        parts: Encoded parts.
    """
    return encode_document(Kind.LOGGED_PARTS, "", {"number": number}, parts)


def decode_logged_parts(entry: bytes) -> tuple[int, list[pa.Buffer]]:
    """Decode an entry of the joining stage's log; see `decode_part` for the errors."""
    found = decode_document(entry, Kind.LOGGED_PARTS, "the joining stage's log", _REMEDY)
    return found.fields["number"], found.blobs
