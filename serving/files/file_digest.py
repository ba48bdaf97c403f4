"""The digest of a file's bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits; the file may exceed memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
