"""Objects of an exchange: entries of which each is whole, behind one that says what they are.

The first entry has the object's place, which no other object has, and how many bytes follow. So an
object that was changed, cut short, or put in the place of another one is an error, whoever did it.
That is no signature: whoever may write to the storage can make an object that is whole.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import pyarrow as pa

from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.exchange.names import Told
from tidemill.pipelines.io.framing import (
    HEADER_BYTES,
    Bytes,
    Document,
    Kind,
    decode_document,
    document_pieces,
    size_of,
)

Entry: TypeAlias = Sequence[Bytes]
"""An encoded entry, in pieces."""

SOMEBODY: Final = (
    "somebody else writes to the exchange: let nobody, and run the command again (a stream with "
    "--resume)"
)
_LARGE: Final = 1 << 16


def told(kind: str, fields: Mapping[str, Any], blobs: Iterable[Bytes] = ()) -> Entry:
    """Encode something to tell.

    Args:
        kind: What it is.
        fields: JSON values by name.
        blobs: Binary parts, which are not copied.
    """
    return document_pieces(Kind.EXCHANGED, kind, fields, blobs)


def size_of_entry(entry: Entry) -> int:
    """Return how many bytes an entry has."""
    return sum(memoryview(piece).nbytes for piece in entry)


def sealed(place: str, entries: Sequence[Entry]) -> Iterator[Bytes]:
    """Yield the pieces of an object.

    Args:
        place: Its place: what no other object has.
        entries: What it tells.
    """
    following = sum(map(size_of_entry, entries))
    small: list[Bytes] = list(told(Told.OBJECT, {"place": place, "bytes": following}))
    for entry in entries:
        for piece in entry:
            if memoryview(piece).nbytes < _LARGE:
                small.append(piece)
                continue
            yield b"".join(small)
            small = []
            yield piece
    yield b"".join(small)


def read_sealed(data: pa.Buffer, place: str) -> Iterator[Document]:
    """Yield what an object tells; the key of each entry is what it is.

    Args:
        data: Its bytes.
        place: Where it was read.

    Raises:
        DamagedState: It is not what was written there.
    """
    at, is_first = 0, True
    while at < data.size or is_first:
        size = size_of(data.slice(at, min(HEADER_BYTES, data.size - at)).to_pybytes())
        if size is None:
            raise DamagedState(f"{place}, byte {at:,}: was not written by Tidemill; {SOMEBODY}")
        one = decode_document(data.slice(at, size), Kind.EXCHANGED, place, SOMEBODY)
        at += size
        if is_first:
            _check(one, place, data.size - at)
            is_first = False
        else:
            yield one


def _check(first: Document, place: str, following: int) -> None:
    if first.key != Told.OBJECT:
        raise DamagedState(f"{place}: does not say what it is; {SOMEBODY}")
    if first.fields["place"] != place:
        theirs = first.fields["place"]
        common = posixpath.commonprefix([place, theirs]).rpartition("/")[0]
        raise DamagedState(
            f"{place}: is what was written at {theirs.removeprefix(common).lstrip('/')}, which "
            f"somebody has put there; {SOMEBODY}"
        )
    if first.fields["bytes"] != following:
        raise DamagedState(
            f"{place}: {following:,} bytes follow, and {first.fields['bytes']:,} were written: it "
            f"was cut short or added to; {SOMEBODY}"
        )


def removed(place: str) -> DamagedState:
    """Return the error of an object that was written, and is not there."""
    return DamagedState(f"{place}: was removed, and not by Tidemill; {SOMEBODY}")
