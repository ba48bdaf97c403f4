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

Rejected records of topics are exported into the same files. Mended ones are stored in
``root/mended_live``, and the stream takes them: it writes down what becomes of each, once, so they
are rows of the live log as if their messages came now (`pipelines.io.live.mended`). No backfill is
needed, and what the stream has answered stays. A record that the stream rejects again is exported
again, with the new reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.export_rejected import export
from tidemill.pipelines.ingest.feed_live import feed_live
from tidemill.pipelines.ingest.feed_mended import feed
from tidemill.pipelines.ingest.live_records import read_live_records
from tidemill.pipelines.ingest.mended_lines import read_lines
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
        last also by reason; and ``left``, the number of the source's records rejected now. Records
        of topics are counted apart, as ``SOURCE (topic)``: ``stored`` instead of the first three.

    Raises:
        InputError: The mended file cannot be used, or the files of a source have changed.
    """
    found, live = read_rejected(config.root, config.sources), read_live_records(config)
    if mended is None:
        return export(config, progress, found, live)
    lines = read_lines(mended, config.sources)
    of_topics = [
        line for line in lines if line.record in live.rejected or line.record in live.accepted
    ]
    of_files = [line for line in lines if line not in of_topics]
    figures = feed(config, progress, found, of_files) if of_files else {}
    if of_topics:
        counts = feed_live(config, progress, of_topics)
        figures |= {f"{name} (topic)": count for name, count in counts.items()}
    return figures
