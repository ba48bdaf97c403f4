"""Hashes of JSON values, and of the files of a directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tidemill.serving.files.file_digest import file_sha256


def file_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 (hexadecimal) of every file below a directory, by relative path."""
    return {
        path.relative_to(directory).as_posix(): file_sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def content_hash(content: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a canonical JSON value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
