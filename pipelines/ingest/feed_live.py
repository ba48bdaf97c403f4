"""Mended records of topics: try them, and store those that are valid for the live reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tidemill.features.errors import InputError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.live_records import LiveRecord, LiveRecords, read_live_records
from tidemill.pipelines.ingest.mended_lines import MendedLine
from tidemill.pipelines.ingest.mended_live import alone, next_replay, write_mended
from tidemill.pipelines.ingest.rejected_records import as_text
from tidemill.pipelines.ingest.topics import MadeOf, made_of, payload_format
from tidemill.pipelines.io.live.mended import MendedMessage, Origin, Refusal, judge_alone
from tidemill.pipelines.run.progress import Progress


def feed_live(
    config: Configuration, progress: Progress, lines: Sequence[MendedLine]
) -> dict[str, Any]:
    """Store mended records of topics; see `pipelines.ingest.replay_rejected`.

    They are tried first: what is wrong whatever the stream has read by then is said at once.

    Returns:
        Counts by source: ``given = stored + mended_before + still_rejected``; the last also by
        reason; and ``left``, the number of records that are rejected and not stored.

    Raises:
        InputError: A record was mended to other bytes before; nothing is stored.
    """
    with alone(config.root):
        records = read_live_records(config)
        fresh = [line for line in lines if not _is_known(line, records)]
        replay, made = next_replay(config.root), dict[str, MadeOf]()
        stored: list[MendedMessage] = []
        refused: dict[str, tuple[MendedLine, Refusal]] = {}
        with progress.stage("replay rejected", total=len(fresh), unit="records") as stage:
            for line in fresh:
                if line.stream not in made:
                    made[line.stream] = made_of(config, config.sources[line.stream])
                message = _message(config, line, records.rejected[line.record], replay)
                found = judge_alone(message, *made[line.stream].alone(), 0)
                if isinstance(found, Refusal):
                    refused[line.record] = line, found
                else:
                    stored.append(message)
                stage.advance(1)
        if stored:
            write_mended(config.root, stored)
    for line, refusal in refused.values():
        progress.say(f"{line.origin}: rejected still: {refusal.detail}")
    if stored:
        progress.say(
            "A stream that runs takes the records within seconds; else run tidemill stream --resume"
        )
    given = Counter(line.stream for line in lines)
    kept = Counter(one.stream for one in stored)
    wrong = Counter(line.stream for line, _ in refused.values())
    open_ = Counter(
        one.record["stream"]
        for name, one in records.rejected.items()
        if name not in records.waiting
    )
    return {
        name: {
            "given": count,
            "stored": kept[name],
            "mended_before": count - kept[name] - wrong[name],
            "still_rejected": wrong[name],
            "reasons": dict(
                Counter(why.reason for line, why in refused.values() if line.stream == name)
            ),
            "left": open_[name] - kept[name],
        }
        for name, count in sorted(given.items())
    }


def _is_known(line: MendedLine, records: LiveRecords) -> bool:
    """Tell whether a line was read in before.

    Raises:
        InputError: It was, with other bytes.
    """
    before = records.accepted.get(line.record) or records.waiting.get(line.record)
    if before is None:
        return False
    if before.payload != line.given(records.payload(line.record)).payload:
        state = "is part of the log now"
        if line.record in records.waiting:
            state = "waits for the stream: run tidemill stream --resume first"
        raise InputError(
            f"{line.origin}: record {line.record} of {line.stream!r} was mended before, in "
            f"{before.line}, as {as_text(before.payload)!r}, and {state}; take the line out of the "
            "file"
        )
    return True


def _message(
    config: Configuration, line: MendedLine, record: LiveRecord, replay: int
) -> MendedMessage:
    source = config.sources[line.stream]
    origin = record.record["origin"]
    place = Origin.parse(origin)
    if source.kafka is None or place.topic != source.kafka.topic:
        raise InputError(
            f"{line.origin}: record {line.record} is of the topic {place.topic!r}, which is not "
            f"that of {line.stream!r} any more; take the line out of the file"
        )
    given = line.given(record.record["payload"])
    if payload_format(source) == "json":
        is_row = place.row is not None
    elif given.payload == record.record["payload"]:
        # A row of an Arrow message that JSON cannot write came as a stream of that row.
        is_row = place.row is not None and given.payload.startswith(b"{")
    else:
        # A text that a person has written is no message of a binary format; bytes are one.
        is_row = given.is_text
    return MendedMessage(
        line.record,
        line.stream,
        origin,
        given.payload,
        line.origin,
        replay,
        is_row,
        record.key,
        record.timestamp_us,
        record.headers,
        record.types,
    )
