"""The state of an operator as bytes: the head, the snapshot, and the log of releases since.

Each is a frame (`pipelines.io.framing`) with the operator's key. Equal states have equal bytes:
waiting batches are sorted by poll and partition, remembered rows by digest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.errors import StateMismatch
from tidemill.features.kernel.dedupe import FORGET_FROM, PairSet, UInt64Array
from tidemill.features.kernel.encoding import decode, encode
from tidemill.features.kernel.plan import Plan
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.io.epochs import epoch_field
from tidemill.pipelines.io.framing import (
    Bytes,
    Document,
    Kind,
    decode_document,
    encode_document,
    frame,
    unframe,
)
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.sequence import SequencedBatch, decode_batches, encode_batches

_REMEDY: Final = "start it from handed-over states"
_LOGGED: Final = struct.Struct("<2q")
_WORD: Final = np.dtype("<i8")
_PAIR: Final = np.dtype("<u8")


@dataclass(frozen=True)
class Head:
    """The small state that changes with every poll.

    Attributes:
        expected: The next position of each partition.
        watermarks: The watermark of each partition.
        held: The batches of polls that wait for an earlier poll, or for their other batches.
        events: Event rows that wait for the frontier; None if there are none.
        requests: Request rows that wait for the frontier; None if there are none.
        number: The number of the last release.
        mark: The mark of the last release (`pipelines.stream.marks`).
        attempt: When the operator was made in this process, in seconds since 1970.
        is_answered: Whether an answer was given as of the frontier (mode ``eager``).
        savepoint: The number of the last poll before the savepoint where the run stops; None if
            the savepoint's mark has not come.
        seen: The operator's counters by name.
        kernel: The kernel's counters by name.
        epoch: How many marks of savepoints the operator has passed since the run began.
        moved: If the rows that wait are in the log (`pipelines.stream.waiting_rows`) and not here:
            the number of the last release that moved the frontier; else None.
        forgets: When the operator forgot events since what the head goes with was written: the
            number of the release, and the time before which.
        forget_at: With so many events it forgets old ones (`features.kernel.dedupe.PairSet`).
    """

    expected: Sequence[int]
    watermarks: Sequence[int]
    held: Iterable[SequencedBatch]
    events: pa.RecordBatch | None
    requests: pa.RecordBatch | None
    number: int
    mark: bytes
    attempt: int
    is_answered: bool
    savepoint: int | None
    seen: Mapping[str, int]
    kernel: Mapping[str, int]
    epoch: int = 0
    moved: int | None = None
    forgets: Sequence[tuple[int, int]] = ()
    forget_at: int = FORGET_FROM

    def encode(self, key: OperatorKey) -> bytes:
        """Encode the head."""
        waiting = [
            SequencedBatch(0, is_request, 0, 0, 0, 0, 0, rows)
            for is_request, rows in ((False, self.events), (True, self.requests))
        ]
        fields = {
            "expected": self.expected,
            "watermarks": self.watermarks,
            "number": self.number,
            "mark": self.mark.hex(),
            "attempt": self.attempt,
            "is_answered": self.is_answered,
            "savepoint": self.savepoint,
            "seen": self.seen,
            "kernel": self.kernel,
            **epoch_field(self.epoch),
            **({} if self.moved is None else {"moved": self.moved}),
            # Only where it is needed, so that the bytes of other states stay as they were.
            **({"forgets": self.forgets} if self.forgets else {}),
            **({} if self.forget_at == FORGET_FROM else {"forget_at": self.forget_at}),
        }
        blobs = [encode_batches(waiting), encode_batches(sorted(self.held, key=_place))]
        return encode_document(Kind.OPERATOR_HEAD, key.text, fields, blobs)

    @staticmethod
    def decode(data: bytes | pa.Buffer, key: OperatorKey, events: pa.Schema) -> Head:
        """Decode a head.

        Args:
            data: The bytes.
            key: The operator that the head must belong to.
            events: The schema of event rows.

        Raises:
            StateMismatch: The head belongs to another key.
            StateVersionError: Its version is not supported.
            DamagedState: The bytes are not a head.
        """
        found = _document(data, Kind.OPERATOR_HEAD, key)
        fields = found.fields
        waiting, held = (list(decode_batches(blob, events)) for blob in found.blobs)
        return Head(
            expected=fields["expected"],
            watermarks=fields["watermarks"],
            held=held,
            events=waiting[0].rows,
            requests=waiting[1].rows,
            number=fields["number"],
            mark=bytes.fromhex(fields["mark"]),
            attempt=fields["attempt"],
            is_answered=fields["is_answered"],
            savepoint=fields["savepoint"],
            seen=fields["seen"],
            kernel=fields["kernel"],
            epoch=fields.get("epoch", 0),
            moved=fields.get("moved"),
            forgets=[(number, time_us) for number, time_us in fields.get("forgets", ())],
            forget_at=fields.get("forget_at", FORGET_FROM),
        )


def _place(batch: SequencedBatch) -> tuple[int, bool, int]:
    return batch.poll, batch.is_request, batch.partition


def encode_snapshot(key: OperatorKey, state: State, rows: PairSet) -> bytes:
    """Encode the kernel's state and the remembered rows.

    Args:
        key: The operator.
        state: The kernel's state.
        rows: Digests of rows, with their times.
    """
    return encode_snapshot_of(key, encode(state), *rows.entries())


def encode_snapshot_of(
    key: OperatorKey, state: bytes, digests: UInt64Array, times_us: Int64Array
) -> bytes:
    """Encode a kernel's state that is encoded already, and the remembered rows, in any order."""
    pairs, times = _sorted(digests, times_us)
    remembered = [pairs.astype(_PAIR).tobytes(), times.astype(_WORD).tobytes()]
    blobs: list[Bytes] = [state, *remembered]
    return encode_document(Kind.OPERATOR_SNAPSHOT, key.text, {}, blobs)


def _sorted(pairs: UInt64Array, times: Int64Array) -> tuple[UInt64Array, Int64Array]:
    # Digests differ in their first word but by chance, and sorting by one word is far cheaper.
    first = np.ascontiguousarray(pairs[:, 0])
    order = np.argsort(first)
    in_order = first[order]
    if (in_order[1:] == in_order[:-1]).any():
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], times[order]


def decode_snapshot(data: bytes | pa.Buffer, key: OperatorKey, plan: Plan) -> tuple[State, PairSet]:
    """Decode a snapshot into state and rows; arguments and errors as for `Head.decode`."""
    state, pairs, times = _document(data, Kind.OPERATOR_SNAPSHOT, key).blobs
    rows = PairSet()
    rows.add(
        np.frombuffer(pairs, _PAIR).astype(np.uint64).reshape(-1, 2),
        np.frombuffer(times, _WORD).astype(np.int64),
    )
    return decode(state.to_pybytes(), plan), rows


class LoggedRelease(NamedTuple):
    """A release in the log since the last snapshot.

    Attributes:
        number: The release's number. The engine's state may give the log in another order.
        until_us: The frontier.
        events: The applied events; None if there are none.
    """

    number: int
    until_us: int
    events: pa.RecordBatch | None


def encode_release(key: OperatorKey, release: LoggedRelease) -> bytes:
    """Encode a release for the log."""
    rows = b"" if release.events is None else release.events.serialize()
    header = _LOGGED.pack(release.number, release.until_us)
    return frame(Kind.LOGGED_RELEASE, key.text, [header, rows])


def decode_release(entry: bytes, key: OperatorKey, events: pa.Schema) -> LoggedRelease:
    """Decode a logged release; arguments and errors as for `Head.decode`."""
    content = unframe(entry, Kind.LOGGED_RELEASE, f"{key}: a logged release", _REMEDY, key.text)[2]
    number, until_us = _LOGGED.unpack_from(content)
    rows = content.slice(_LOGGED.size)
    found = pa.ipc.read_record_batch(rows, events) if len(rows) else None
    return LoggedRelease(number, until_us, found)


def _document(data: bytes | pa.Buffer, kind: Kind, key: OperatorKey) -> Document:
    found = decode_document(data, kind, f"{key}: the operator's state", _REMEDY)
    if found.key != key.text:
        other = OperatorKey.parse(found.key)
        raise StateMismatch(
            f"{key}: the state belongs to {other} (definition {other.hash}, here {key.hash}); "
            f"{_REMEDY}"
        )
    return found
