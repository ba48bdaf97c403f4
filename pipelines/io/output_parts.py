"""Parts: files to which outputs of a stream are appended, before they are joined.

A stream makes outputs all the time: a file for each of them would cost more than the work itself.
So every writer appends to a *part*, a file of its own, and `pipelines.io.outputs` joins the parts
of a segment when its savepoint counts. The promises:

* An output has a *name*, which is a function of what it holds, never of how often or in which
  bundle it was written. An engine that repeats it writes the same name again.
* What `PartWriter.append` was given is read back whole, or not at all: a part may end in an append
  that a kill has cut short, which is not read. Any other damage is an error, or lets outputs be
  missing, which those who count them see (`pipelines.stream_run.keeper`).
* One process writes to a part, and others may read it meanwhile. To join parts, they are renamed
  first; a writer that finds its part renamed appends to another one, and again what may have come
  too late.

A part holds frames (`pipelines.io.framing`), one for each append. Each has the names and the
numbers of rows of its outputs, and their rows as one Arrow stream.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.batch_bytes import batches_bytes
from tidemill.pipelines.io.framing import (
    HEADER_BYTES,
    Kind,
    decode_document,
    encode_document,
    size_of,
)
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.read_files import reading
from tidemill.serving.files.segment_names import segment_prefix

PART: Final = ".part"
JOINING: Final = ".joining"
"""The ending of a part to which nothing is appended any more."""
REMEDY: Final = "run `tidemill stream --resume`, or without --resume to start over"


class Output(NamedTuple):
    """An output of a stream.

    Attributes:
        name: Its name; outputs are ordered by their names.
        rows: Its rows, ``(rows,)``.
    """

    name: str
    rows: pa.RecordBatch


class Appended(NamedTuple):
    """The outputs of one append.

    Attributes:
        names: Their names.
        rows: How many rows each has.
        start: Where the frame begins, in bytes.
        stop: Where it ends.
        data: The Arrow stream with a batch for each.
    """

    names: Sequence[str]
    rows: Sequence[int]
    start: int
    stop: int
    data: pa.Buffer

    def outputs(self) -> Iterator[Output]:
        """Yield the outputs; their rows refer to the bytes that were read."""
        with pa.ipc.open_stream(self.data) as reader:
            for name in self.names:
                yield Output(name, reader.read_next_batch())


def encode_outputs(outputs: Sequence[Output]) -> bytes:
    """Encode the frame of an append.

    Args:
        outputs: At least one; all have the same schema, without metadata.
    """
    data = batches_bytes([output.rows for output in outputs])
    fields = {
        "names": [output.name for output in outputs],
        "rows": [output.rows.num_rows for output in outputs],
    }
    return encode_document(Kind.OUTPUTS, "", fields, [data])


class PartWriter:
    """Appends outputs to a part of its own for each segment.

    Args:
        folder: The folder of the parts; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment = -1
        self._file: FileIO | None = None

    def append(self, segment: int, outputs: Sequence[Output]) -> None:
        """Append outputs, so that all of them are read from now on.

        Args:
            segment: The segment of the stream that they belong to.
            outputs: The outputs; all have the same schema, without metadata.

        Raises:
            FileError: The disk is full, ...; none of them is read.
        """
        if not outputs:
            return
        data = encode_outputs(outputs)
        while True:
            file = self._open(segment)
            path = Path(str(file.name))
            try:
                with named_for(path):
                    rest = memoryview(data)
                    while rest:
                        # A disk that is nearly full takes a part.
                        rest = rest[file.write(rest) :]
            except BaseException:
                self.close()  # nothing is appended behind what was cut short
                raise
            if path.exists():
                return
            # It is being joined, perhaps without these outputs: who joins drops repeats.
            self.close()

    def _open(self, segment: int) -> FileIO:
        if self._file is None or segment != self._segment:
            self.close()
            name = f"{segment_prefix(segment)}{secrets.token_hex(8)}{PART}"
            path = self._folder / name
            with named_for(path):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = path.open("xb", buffering=0)
            self._segment = segment
        return self._file

    def close(self) -> None:
        """Close the part; another append begins another one."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_part(path: Path, start: int = 0) -> Iterator[Appended]:
    """Yield the appends of a part that are whole.

    Args:
        path: The part.
        start: Where an append ends, after which to begin, in bytes.

    Raises:
        DamagedState: The bytes are not those that were written.
        FileError: The part cannot be read.
    """
    with reading(path, REMEDY), pa.memory_map(str(path)) as file:
        # A part only grows: what is mapped now stays.
        mapped, at = file.read_buffer(), start
        while mapped.size - at >= HEADER_BYTES:
            size = size_of(mapped.slice(at, HEADER_BYTES).to_pybytes())
            if size is None:
                raise DamagedState(
                    f"{path}: what stands at byte {at:,} was not written by a stream; {REMEDY}"
                )
            if at + size > mapped.size:
                return
            where = f"{path}, byte {at:,}"
            found = decode_document(mapped.slice(at, size), Kind.OUTPUTS, where, REMEDY)
            yield Appended(
                found.fields["names"], found.fields["rows"], at, at + size, found.blobs[0]
            )
            at += size
