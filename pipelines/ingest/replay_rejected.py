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

import base64
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tidemill.features.contract import TIME_MIN
from tidemill.features.errors import InputError, nearest
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Stage
from tidemill.pipelines.config.configuration import Configuration, Source
from tidemill.pipelines.ingest.repaired_records import (
    Mended,
    fresh_rows,
    judge_mended,
    read_mended,
    record_id,
    restated,
    write_mended,
)
from tidemill.pipelines.ingest.validate import definition_of, required_of
from tidemill.pipelines.io.files.input_files import find_files, format_of
from tidemill.pipelines.io.files.readers import read
from tidemill.pipelines.io.log import RECEIVED, Log, one_batch
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import read_table, reading

_KEYS: Final = ("record", "stream", "payload")
_Record = Mapping[str, Any]


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
    found = _read_rejected(config)
    return (
        _export(config, progress, found)
        if mended is None
        else _feed(config, progress, found, mended)
    )


def _read_rejected(config: Configuration) -> dict[str, _Record]:
    """Return the rejected records that can be mended, by their ids, in order of their place."""
    files = (config.root / paths.REJECTED).glob("*.parquet")
    records = [record for path in files for record in _read_records(path)]
    records.sort(key=lambda record: (record["stream"], record["partition"], record["position"]))
    return {
        record_id(record): record
        for record in records
        if record["stage"] != Stage.ANSWER and record["stream"] in config.sources
    }


def _read_records(path: Path) -> list[_Record]:
    """Read a file of rejected records."""
    again = "run `tidemill backfill` again, which rejects the same records"
    records: list[_Record] = read_table(path, again, schema=rejected.SCHEMA).to_pylist()
    return records


# Out


def _export(
    config: Configuration, progress: Progress, found: Mapping[str, _Record]
) -> dict[str, Any]:
    folder = config.root / paths.REJECTED / paths.EXPORT
    figures: dict[str, Any] = {}
    with progress.stage("export rejected", total=len(found), unit="records") as stage:
        for name in sorted({record["stream"] for record in found.values()}):
            files = _Files(config, config.sources[name])
            lines = [
                _line(key, record, files)
                for key, record in found.items()
                if record["stream"] == name
            ]
            path = _write_kept_apart(folder / f"{name}.jsonl", "".join(lines), progress)
            figures[name] = {"exported": len(lines), "file": str(path)}
            stage.advance(len(lines))
    if figures:
        progress.say(
            f"Edit the payloads in {folder}, one JSON object a line; lines that you do not mend "
            "may stay or go. Then, for each file: tidemill replay-rejected --mended FILE; and then "
            "tidemill backfill, which computes the features anew."
        )
    else:
        progress.say(f"Nothing is rejected in {config.root}: there is nothing to mend.")
    return figures


def _line(key: str, record: _Record, files: _Files) -> str:
    payload = record["payload"]
    line = {"record": key, "stream": record["stream"], "origin": record["origin"]}
    line |= {name: record[name] for name in ("stage", "reason", "detail")}
    if files.format(record["partition"]) == "csv":
        line["header"] = files.header(record["partition"])
    line["payload"] = _as_text(payload)
    if line["payload"].encode() != payload:
        line["payload_base64"] = base64.b64encode(payload).decode("ascii")
    return json.dumps(line, ensure_ascii=False) + "\n"


def _as_text(payload: bytes) -> str:
    """Return bytes as a text; of those that are not UTF-8, backslash, x and two hex digits."""
    return payload.decode("utf-8", "backslashreplace")


def _write_kept_apart(path: Path, text: str, progress: Progress) -> Path:
    """Write a text, whole or not at all; keep what else stood there beside it."""
    if path.exists() and path.read_bytes() != text.encode():
        number = 1
        while (kept := path.with_suffix(f".{number}{path.suffix}")).exists():
            number += 1
        path.replace(kept)
        progress.say(f"{path.name} stood there with other content: it is now {kept.name}")
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(text.encode())
    return path


# In


@dataclass(frozen=True)
class _Line:
    """A line of a mended file: which record, where it stands, the payload as it is now."""

    record: str
    stream: str
    origin: str
    payload: bytes


def _feed(
    config: Configuration, progress: Progress, found: Mapping[str, _Record], path: Path
) -> dict[str, Any]:
    lines = _read_lines(path, config)
    before = {
        name: {one.record: one for replay in read_mended(config.root, name) for one in replay}
        for name in {line.stream for line in lines}
    }
    for line in lines:
        if line.record not in found:
            _check_mended_before(line, before[line.stream])
    figures: dict[str, Any] = {}
    with progress.stage("replay rejected", total=len(lines), unit="records") as stage:
        for name in sorted(before):
            given = [line for line in lines if line.stream == name]
            figures[name] = _feed_source(config, name, given, found)
            stage.advance(len(given))
    if any(figure["accepted"] or figure["dropped"] for figure in figures.values()):
        progress.say("Now run tidemill backfill, which computes the features anew.")
    return figures


def _check_mended_before(line: _Line, before: Mapping[str, Mended]) -> None:
    if line.record not in before:
        raise InputError(
            f"{line.origin}: record {line.record} of {line.stream!r} is not rejected; its source "
            "may have been read again since it was exported. Export anew: tidemill replay-rejected"
        )
    if line.payload != before[line.record].payload:
        raise InputError(
            f"{line.origin}: record {line.record} of {line.stream!r} was mended before, in "
            f"{before[line.record].origin}, as {_as_text(before[line.record].payload)!r}, and is "
            "part of the log now; take the line out of the file"
        )


def _feed_source(
    config: Configuration, name: str, given: list[_Line], found: Mapping[str, _Record]
) -> dict[str, Any]:
    source, definition = config.sources[name], definition_of(config.project, name)
    lines = [line for line in given if line.record in found]
    records = [found[line.record] for line in lines]
    files, ends = _Files(config, source), _Ends(config, source)
    mended = [
        Mended(
            line.record,
            line.origin,
            line.payload,
            files.format(record["partition"]),
            files.columns(record["partition"]),
            *ends.of(record["partition"]),
        )
        for line, record in zip(lines, records, strict=True)
    ]
    outcome = judge_mended(definition, source, required_of(config.project, definition), mended)
    log, rows = Log(config.root), outcome.rows
    there = pa.Table.from_batches([], schema=rows.schema)
    if log.path(name, 0).exists():
        there = log.read(name, columns=rows.schema.names).select(rows.schema.names)
    fresh = len(fresh_rows(rows, there))
    good = [one for index, one in enumerate(mended) if index not in outcome.refused]
    if good:
        write_mended(config.root, name, good)
    still = {record_id(record): record for record in restated(records, mended, outcome.refused)}
    _update_rejected(config, {one.record for one in good}, still)
    return {
        "given": len(given),
        "accepted": fresh,
        "dropped": len(good) - rows.num_rows,
        "already_there": rows.num_rows - fresh,
        "mended_before": len(given) - len(lines),
        "still_rejected": len(still),
        "reasons": dict(Counter(record["reason"] for record in still.values())),
        "left": sum(record["stream"] == name for record in found.values()) - len(good),
    }


def _update_rejected(
    config: Configuration, settled: set[str], still: Mapping[str, _Record]
) -> None:
    """Take records out of ``root/rejected`` and write others there anew, file by file."""
    for path in sorted((config.root / paths.REJECTED).glob("*.parquet")):
        records = _read_records(path)
        left = [
            still.get(key, record)
            for record in records
            if record["stage"] == Stage.ANSWER or (key := record_id(record)) not in settled
        ]
        if not left:
            path.unlink()
        elif left != records:
            write_rows(path.parent, pa.Table.from_pylist(left, schema=rejected.SCHEMA), path.stem)


def _read_lines(path: Path, config: Configuration) -> list[_Line]:
    lines: dict[str, _Line] = {}
    with reading(path, "name the file that was exported and mended"):
        texts = path.read_bytes().splitlines()
    for number, text in enumerate(texts, start=1):
        where = f"{path.name}:{number}"
        if not text.strip():
            continue
        line = _read_line(text, where, config.sources)
        if line.record in lines:
            raise InputError(
                f"{where}: record {line.record} stands in {lines[line.record].origin} too; keep "
                "one of the two lines"
            )
        lines[line.record] = line
    return list(lines.values())


def _read_line(text: bytes, where: str, sources: Collection[str]) -> _Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{where}: is no JSON ({error}); expected one object a line, as it was exported. In a "
            'JSON text a quote is written as \\" and a backslash as \\\\'
        ) from error
    if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in _KEYS):
        raise InputError(
            f"{where}: expected an object with the texts {', '.join(_KEYS)}, as it was exported"
        )
    if line["stream"] not in sources:
        raise InputError(
            f"{where}: no source {line['stream']!r}; {nearest(line['stream'], sources)}"
        )
    return _Line(line["record"], line["stream"], where, _payload(line, where))


def _payload(line: Mapping[str, Any], where: str) -> bytes:
    text: str = line["payload"]
    try:
        untouched = base64.b64decode(line.get("payload_base64", ""), validate=True)
        # Bytes that no text can hold are used as they are where nobody edited their text.
        if untouched and text == _as_text(untouched):
            return untouched
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the payload cannot be used ({error}); expected a text, and payload_base64 "
            "as it was exported or not at all"
        ) from error


# What a record needs to know of its source


class _Files:
    """The formats and columns of a source's files, by partition, looked up once each."""

    def __init__(self, config: Configuration, source: Source) -> None:
        self._source = source
        self._paths = find_files(source.files, config.path.parent)
        self._columns: dict[int, pa.Schema] = {}

    def format(self, partition: int) -> str:
        return self._source.format or format_of(self._path(partition))

    def header(self, partition: int) -> str:
        """Return the column names of a csv file as they would stand in one of its lines."""
        names = self.columns(partition).names
        return ",".join(
            '"' + name.replace('"', '""') + '"' if set(name) & set('",\r\n') else name
            for name in names
        )

    def columns(self, partition: int) -> pa.Schema:
        """Return the columns of a file as they are read."""
        if partition not in self._columns:
            batches = read(
                [self._path(partition)], stream=self._source.name, format=self._source.format
            )
            schemas = (raw.batch.schema for raw in batches)
            if self.format(partition) == "jsonl":
                # A key becomes a column with the first line that has it.
                self._columns[partition] = pa.unify_schemas(list(schemas))
            else:
                self._columns[partition] = next(schemas, pa.schema([]))
        return self._columns[partition]

    def _path(self, partition: int) -> Path:
        if partition >= len(self._paths):
            raise InputError(
                f"source {self._source.name!r} has {len(self._paths)} files, and rejected records "
                f"of a file {partition + 1}: the source has changed. Read it again: tidemill "
                "backfill"
            )
        return self._paths[partition]


class _Ends:
    """What the log of a source holds at its end, by partition, looked up once each."""

    def __init__(self, config: Configuration, source: Source) -> None:
        self._is_log = source.received is not None
        self._log = Log(config.root)
        self._definition = definition_of(config.project, source.name)
        self._ends: dict[int, tuple[int, int]] = {}

    def of(self, partition: int) -> tuple[int, int]:
        """Return the highest accepted time of a partition, and when its last row arrived.

        Raises:
            InputError: The source is a log, and it was never ingested.
        """
        if not self._is_log:
            return TIME_MIN, TIME_MIN
        if partition not in self._ends:
            time_column = self._definition.time_column
            table = self._log.read(self._definition.name, partition, [time_column, RECEIVED])
            times, received = one_batch(table).columns
            self._ends[partition] = (
                (int(hashing.bits(times).max()), int(hashing.bits(received).max()))
                if len(times)
                else (TIME_MIN, TIME_MIN)
            )
        return self._ends[partition]
