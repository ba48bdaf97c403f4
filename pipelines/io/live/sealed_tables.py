"""The files of a live log that are not rows: Arrow files that know their own digest.

Cuts, and what polls have beside their rows, are compared with nothing else by everybody who reads
them. So each file has the SHA-256 of its bytes among the metadata of its schema. The promises:

* A file of which any byte was changed is an error, and is never read.
* A file is written whole, and has survived a crash of the machine once `write_sealed` has returned.
* A file of a version that wrote no digest is read as it is.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Final

import pyarrow as pa

from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

_DIGEST: Final = b"tidemill.sha256"
"""The key of the digest, which is that of all bytes but its own."""


def write_sealed(path: Path, table: pa.Table) -> None:
    """Replace a file by a table, and wait for the disk.

    Raises:
        FileError: The disk is full, the folder read-only, ...
    """
    place = secrets.token_hex(32).encode()  # no row has this text
    named = {**(table.schema.metadata or {}), _DIGEST: place}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata(named)) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    with atomic_write(path, durable=True) as unfinished:
        unfinished.write_bytes(content.replace(place, _digest(content, place)))


def read_sealed(path: Path, remedy: str) -> pa.Table:
    """Read a file.

    Args:
        path: The file.
        remedy: What to do if it is damaged.

    Raises:
        DamagedFile: A byte of it was changed, or it is no such file.
        FileError: The system refuses to read it.
    """
    with reading(path, remedy):
        content = path.read_bytes()
        table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
        named = dict(table.schema.metadata or {})
        digest = named.pop(_DIGEST, None)
        # The bytes have the key twice: one that was changed does not hide the other.
        if (digest is not None or _DIGEST in content) and (
            digest is None or _digest(content, digest) != digest
        ):
            raise ValueError("it was changed after it was written: its digest does not match")
        return table.replace_schema_metadata(named or None)


def _digest(content: bytes, place: bytes) -> bytes:
    """Digest bytes without what stands in the places of the digest."""
    return hashlib.sha256(content.replace(place, b"")).hexdigest().encode()
