"""Replaying rejected records: out to a file that a person can edit, and in again.

Without a mended file, `replay` writes ``root/rejected/export/<source>.jsonl``: one JSON object a
line, with the reason, the payload as text, and for csv the header that it stands under. A person
edits the payloads (in place; lines that are none of their business may go) and hands the file
back. Each payload is then read as its source's format says, and goes through the same transform,
validation and acceptance as any other row (`pipelines.ingest.repaired_records` says what exactly,
and where it comes to stand in the log).

What is promised here:

* Records that are good now leave ``root/rejected``; the others stay there with what is wrong now.
* The log, the features, the states and the evidence stay as they are, and of one piece, until the
  next ``tidemill backfill`` computes them from the source's files and the mended records.
* The same file twice changes nothing. A line that names no rejected record, or one that was mended
  otherwise before, is an error that names the line, and then nothing of the file is used.
* No export overwrites another that differs from it, since somebody may have worked on that.

Records that were refused while answering (stage ``answer``) had nothing wrong with them, so there
is nothing to mend, and they are left out.
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
    """Export rejected records to be mended, or feed mended ones in again.

    Args:
        config: The configuration.
        progress: Where to show what is done, and what to do next.
        mended: An exported file, its payloads edited; None to export.

    Returns:
        Counts by source. Of an export: ``exported``, and the ``file``. Of a mended file: ``given =
        accepted + dropped + already_there + mended_before + still_rejected`` records, the last by
        reason too, and ``left``, which is how many of the source are rejected now.

    Raises:
        InputError: The mended file cannot be used, or the files of a source have changed.
    """
    found = read_rejected(config.root, config.sources)
    return (
        export(config, progress, found) if mended is None else feed(config, progress, found, mended)
    )
