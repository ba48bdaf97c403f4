"""Export rejected records to files that the user can edit."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.live_records import LiveRecord, LiveRecords
from tidemill.pipelines.ingest.rejected_records import Record, as_text
from tidemill.pipelines.ingest.source_files import SourceFiles
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.files.atomic_write import atomic_write


def export(
    config: Configuration, progress: Progress, found: Mapping[str, Record], live: LiveRecords
) -> dict[str, Any]:
    """Write the rejected records of each source; see `pipelines.ingest.replay_rejected`."""
    figures: dict[str, Any] = {}
    # What waits for the stream was mended: it is exported again if the stream rejects it.
    of_topics = {name: one for name, one in live.rejected.items() if name not in live.waiting}
    total = len(found) + len(of_topics)
    with progress.stage("export rejected", total=total, unit="records") as stage:
        sources = {record["stream"] for record in found.values()}
        for name in sorted(sources | {one.record["stream"] for one in of_topics.values()}):
            files = SourceFiles(config.sources[name], list(config.project.definition(name).schema))
            lines = [
                _line(key, record, files)
                for key, record in found.items()
                if record["stream"] == name
            ]
            lines += [
                live_line(key, one)
                for key, one in of_topics.items()
                if one.record["stream"] == name
            ]
            path = write_lines(config.root, name, lines, progress)
            figures[name] = {"exported": len(lines), "file": str(path)}
            stage.advance(len(lines))
    if figures:
        progress.say(
            f"{what_to_do(config.root)}; and then tidemill backfill, which computes the features "
            "again; records of topics need no backfill, since the stream takes them."
        )
    else:
        progress.say(f"Nothing is rejected in {config.root}: there is nothing to mend.")
    return figures


def _line(key: str, record: Record, files: SourceFiles) -> str:
    header = None
    if files.format(record["partition"]) == "csv":
        header = {"header": files.header(record["partition"])}
    return _written(key, record, header or {})


def what_to_do(root: Path) -> str:
    """Return what a person does with exported files; without the stop at the end."""
    return (
        f"Edit the payloads in {root / paths.REJECTED / paths.EXPORT}, one JSON object a line; "
        "lines that you do not edit may be deleted. Then, for each file: tidemill replay-rejected "
        "--mended FILE"
    )


def live_line(key: str, one: LiveRecord) -> str:
    """Return the line of a rejected record of a topic, with the newline.

    Args:
        key: The record's id.
        one: The record.
    """
    return _written(key, one.record, {"replays": one.replays} if one.replays else {})


def _written(key: str, record: Record, more: Mapping[str, Any]) -> str:
    payload = record["payload"]
    line = {"record": key, "stream": record["stream"], "origin": record["origin"]}
    line |= {name: record[name] for name in ("stage", "reason", "detail")}
    line |= more
    line["payload"] = as_text(payload)
    if line["payload"].encode() != payload:
        line["payload_base64"] = base64.b64encode(payload).decode("ascii")
    return json.dumps(line, ensure_ascii=False) + "\n"


def write_lines(root: Path, source: str, lines: Sequence[str], progress: Progress) -> Path:
    """Write the export of a source; first rename an existing file with other content.

    Returns:
        The file.
    """
    path = root / paths.REJECTED / paths.EXPORT / f"{source}.jsonl"
    text = "".join(lines)
    if path.exists() and path.read_bytes() != text.encode():
        number = 1
        while (kept := path.with_suffix(f".{number}{path.suffix}")).exists():
            number += 1
        path.replace(kept)
        progress.say(f"{path.name} had other content: it was renamed to {kept.name}")
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(text.encode())
    return path
