"""Replaying rejected records: export them to a file, and read the edited file in again.

Without a mended file, `replay` writes ``root/rejected/export/<source>.jsonl``: one JSON object a
line, with the reason, the payload as text, and for csv the header. The user edits the payloads and
may delete lines. With the edited file, `replay` parses each payload as its source's format says and
applies the same transform, validation and acceptance as to other rows
(`pipelines.ingest.repaired_records`).

The promises:

* Records that are valid now leave ``root/rejected``; the others stay there with the new reason.
* Log, features, states and evidence stay unchanged and consistent until the next ``tidemill
  backfill`` computes them from the source's files and the mended records.
* Replaying a file twice changes nothing. A line whose record is not rejected, or was mended to
  another payload before, is an error that names the line; then no line of the file is used.
* An export never overwrites a file with other content, since the user may have edited it.

Records rejected at stage ``answer`` are left out: their rows are valid already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.export_rejected import export
from tidemill.pipelines.ingest.feed_mended import feed
from tidemill.pipelines.ingest.rejected_records import read_rejected
from tidemill.pipelines.run.progress import Progress


def replay(config: Configuration, progress: Progress, mended: Path | None) -> dict[str, Any]:
    """Export rejected records, or read a mended file in.

    Args:
        config: The configuration.
        progress: Shows progress, and what to do next.
        mended: An exported file with edited payloads; None to export.

    Returns:
        Counts by source. For an export: ``exported``, and the ``file``. For a mended file:
        ``given = accepted + dropped + already_there + mended_before + still_rejected`` records; the
        last also by reason; and ``left``, the number of the source's records rejected now.

    Raises:
        InputError: The mended file cannot be used, or the files of a source have changed.
    """
    found = read_rejected(config.root, config.sources)
    return (
        export(config, progress, found) if mended is None else feed(config, progress, found, mended)
    )
