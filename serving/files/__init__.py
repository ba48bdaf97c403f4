"""Files: atomic writes, reads that detect damage, and the file names of stream segments."""

from __future__ import annotations

from tidemill.serving.files.atomic_write import atomic_write, write_text
from tidemill.serving.files.segment_names import segment_of, segment_prefix

__all__ = ["atomic_write", "segment_of", "segment_prefix", "write_text"]
