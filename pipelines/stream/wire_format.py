"""Messages between stages as bytes: parts of answers, publications, given-up requests.

The joining stage takes parts (`pipelines.stream.answer_parts`); the publishing stage takes the
publications of a release. Each message is a frame (`pipelines.io.framing`) with a few fields and an
Arrow IPC stream. A message of an operator has the operator's key in its header, so that no stage
mistakes it for that of another view or definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of
from tidemill.pipelines.io.epochs import epoch_field
from tidemill.pipelines.io.framing import Kind, decode_document, encode_document
from tidemill.pipelines.stream.answer_parts import (
    AnswerPart,
    Part,
    RequestPart,
    SavepointPart,
    Unanswered,
    divided,
    joiner_of,
)
from tidemill.pipelines.stream.joiner_key import JoinerKey
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.release import Release

_PARTS: Final = (Kind.REQUEST_PART, Kind.ANSWER_PART, Kind.SAVEPOINT_PART)
_REMEDY: Final = "run the stream from its last savepoint, or from its beginning"


def encode_part(part: Part, key: str = "") -> bytes:
    """Encode a part for the joining stage.

    Args:
        part: The part.
        key: The `OperatorKey.text` of the sender; empty for requests.
    """
    if isinstance(part, RequestPart):
        fields = {"group": part.group, **epoch_field(part.epoch)}
        return encode_document(Kind.REQUEST_PART, key, fields, [batch_bytes(part.rows)])
    place: dict[str, Any] = {"view": part.view, "shard": part.shard, "number": part.number}
    place |= epoch_field(part.epoch)
    if isinstance(part, SavepointPart):
        return encode_document(Kind.SAVEPOINT_PART, key, {**place, "groups": part.groups})
    rows = batch_bytes(part.answers if part.answers is not None and part.answers.num_rows else None)
    place["frontier_us"] = part.frontier_us
    return encode_document(Kind.ANSWER_PART, key, place, [rows])


def addressed_requests(part: RequestPart, joiners: int) -> tuple[str, bytes]:
    """Return the key of the joiner of some requests, and the encoded part for it."""
    return joiner_of(part.group, joiners).text, encode_part(part)


def addressed(
    part: AnswerPart | SavepointPart, key: str, joiners: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the key of each joiner and the encoded part of an operator for it.

    Args:
        part: The part; each joiner gets its own (`pipelines.stream.answer_parts.divided`).
        key: The `OperatorKey.text` of the sender.
        joiners: How many joiners there are.
    """
    encoded: dict[int, bytes] = {}
    for joiner, mine in zip(JoinerKey.all(joiners), divided(part, joiners), strict=True):
        if id(mine) not in encoded:
            encoded[id(mine)] = encode_part(mine, key)
        yield joiner.text, encoded[id(mine)]


def decode_part(data: bytes | pa.Buffer, project: Project | None = None) -> Part:
    """Decode a part.

    Args:
        data: The part as a frame.
        project: The project, one of whose views must be the sender; None to skip this check.

    Returns:
        The part; its rows refer to ``data``.

    Raises:
        StateMismatch: The project has no view of the sender's name, or another definition of it.
        StateVersionError: The version is not supported.
        DamagedState: The bytes are not a part.
    """
    kind, key, fields, blobs = decode_document(data, _PARTS, "a part of an answer", _REMEDY)
    if kind is Kind.REQUEST_PART:
        return RequestPart(rows=batch_of(blobs[0]), **fields)
    _check_sender(key, fields["view"], project)
    if kind is Kind.SAVEPOINT_PART:
        return SavepointPart(**{**fields, "groups": tuple(fields["groups"])})
    return AnswerPart(**fields, answers=batch_of(blobs[0]))


def _check_sender(key: str, view: str, project: Project | None) -> None:
    if project is None:
        return
    sender = OperatorKey.parse(key)
    known = next((one for one in project.views if one.name == sender.view), None)
    if known is None or known.hash != sender.hash or sender.view != view:
        here = (
            f"the project has no such view, but {', '.join(one.name for one in project.views)}"
            if known is None
            else f"the project's has definition {known.hash}"
        )
        raise StateMismatch(
            f"a message is of view {sender.view!r} of definition {sender.hash}, {here}; {_REMEDY}"
        )


class Published(NamedTuple):
    """The publications of a release.

    Attributes:
        view: The view's name.
        shard: The shard.
        number: The number of the release.
        mark_before: The mark of the release on which the publications build
            (`pipelines.stream.marks`); None if they are the whole shard.
        mark: The mark of the release.
        attempt: The attempt number of the operator (`pipelines.stream.operator_state.Head`).
        since_us: See `pipelines.stream.release.Release`.
        frontier_us: The frontier.
        rows: Kernel publications.
        is_news: False if the rows repeat earlier publications to repair the online store; then
            they do not belong to the log of publications.
        epoch: How many marks of savepoints the run has sent before the release's poll.
    """

    view: str
    shard: int
    number: int
    mark_before: bytes | None
    mark: bytes
    attempt: int
    since_us: int | None
    frontier_us: int
    rows: pa.RecordBatch
    is_news: bool = True
    epoch: int = 0


def published(operator: ShardOperator, release: Release) -> Published:
    """Return the publications of a release of an operator."""
    return Published(
        view=operator.key.view,
        shard=operator.key.shard,
        number=release.number,
        mark_before=release.mark_before,
        mark=release.mark,
        attempt=operator.attempt,
        since_us=release.since_us,
        frontier_us=release.frontier_us,
        rows=release.publications,
        epoch=release.epoch,
    )


def pack_publications(operator: ShardOperator, release: Release) -> bytes:
    """Encode the publications of a release of an operator."""
    return pack(published(operator, release), operator.key.text)


def everything(operator: ShardOperator) -> Published:
    """Return every entity of a shard as of its last release, to repair the online store.

    The rows are those that its releases have published.
    """
    return Published(
        view=operator.key.view,
        shard=operator.key.shard,
        number=operator.number,
        mark_before=None,
        mark=operator.mark,
        attempt=operator.attempt,
        since_us=None,
        frontier_us=operator.state.frontier_us,
        rows=operator.everything(),
        is_news=False,
    )


def pack(published: Published, key: str) -> bytes:
    """Encode publications; ``key`` is the `OperatorKey.text` of the sender."""
    fields = published._asdict()
    rows = fields.pop("rows")
    before = published.mark_before
    fields |= epoch_field(fields.pop("epoch")) | {
        "mark_before": None if before is None else before.hex(),
        "mark": published.mark.hex(),
    }
    return encode_document(Kind.PUBLISHED, key, fields, [batch_bytes(rows)])


def unpack_publications(data: bytes, project: Project | None = None) -> Published:
    """Decode publications; see `decode_part` for ``project`` and the errors."""
    found = decode_document(data, Kind.PUBLISHED, "publications of a release", _REMEDY)
    _check_sender(found.key, found.fields["view"], project)
    fields = found.fields
    before = fields.pop("mark_before")
    return Published(
        **{**fields, "mark": bytes.fromhex(fields["mark"])},
        mark_before=None if before is None else bytes.fromhex(before),
        rows=batch_of(found.blobs[0]),
    )


def encode_unanswered(lost: Unanswered) -> bytes:
    """Encode requests that are given up."""
    fields = {"partition": lost.partition, "views": lost.views, **epoch_field(lost.epoch)}
    return encode_document(Kind.UNANSWERED, "", fields, [batch_bytes(lost.rows)])


def decode_unanswered(data: bytes) -> Unanswered:
    """Decode requests that are given up; see `decode_part` for the errors."""
    found = decode_document(data, Kind.UNANSWERED, "requests without an answer", _REMEDY)
    fields = {**found.fields, "views": tuple(found.fields["views"])}
    return Unanswered(rows=batch_of(found.blobs[0]), **fields)


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
