"""The files of one source, read and judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tidemill.features.definitions import EventStream, Request
from tidemill.pipelines.io.files.judged_rows import Judge, StreamBatch
from tidemill.pipelines.io.files.readers import read_for

_READING = ("format", "nulls", "block_bytes", "batch_rows")


def read_stream(
    definition: EventStream | Request, files: Sequence[Path], **options: Any
) -> Iterator[StreamBatch]:
    """Read, transform, validate and accept files, with options of `read_for` and `Judge`."""
    reading = {name: options.pop(name) for name in _READING if name in options}
    rows = Judge(definition, files, **options)
    for (raw,) in read_for([rows.reader], files, **reading):
        yield rows.judge(raw)
