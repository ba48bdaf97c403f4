"""The rejected records of topics: those that can be mended, and those that were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.mended_live import read_mended
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.mended import MendedMessage, record_id
from tidemill.pipelines.io.live.set_aside import mended_outcomes, rejected_records
from tidemill.pipelines.io.messages import Headers
from tidemill.serving.generations.current import CURRENT


@dataclass(frozen=True)
class LiveRecord:
    """A rejected record of a topic.

    Attributes:
        record: The record (a row of `features.rows.rejected.SCHEMA`), with the newest reason.
        key: The key of its message.
        timestamp_us: The timestamp of its message; -1 if it is not known.
        headers: The headers of its message.
        replays: How often it was mended, and rejected again.
        types: The types of its columns (`pipelines.io.live.mended.row_types`); None for texts.
    """

    record: Mapping[str, Any]
    key: bytes | None
    timestamp_us: int
    headers: Headers
    replays: int = 0
    types: bytes | None = None


@dataclass(frozen=True)
class LiveRecords:
    """The rejected records of the topics of a generation, by id.

    Attributes:
        rejected: Those that are rejected still, in the order in which they were read.
        accepted: Those that were mended and are rows now, with the mended message.
        waiting: Mended messages that no stream has judged yet, by the id of their record.
        payloads: The bytes of the accepted ones as they came.
        mended: The ids of all that were mended, and are rows now or wait; also of those that are in
            no file of rejected records any more.
    """

    rejected: Mapping[str, LiveRecord] = field(default_factory=dict)
    accepted: Mapping[str, MendedMessage] = field(default_factory=dict)
    waiting: Mapping[str, MendedMessage] = field(default_factory=dict)
    payloads: Mapping[str, bytes] = field(default_factory=dict)
    mended: frozenset[str] = frozenset()

    def payload(self, name: str) -> bytes | None:
        """Return the bytes of a record as they came; None if it is not known."""
        known = self.rejected.get(name)
        return self.payloads.get(name) if known is None else known.record["payload"]


def read_live_records(config: Configuration) -> LiveRecords:
    """Return the rejected records of the topics that a configuration names.

    Raises:
        StateError: The live log is damaged.
        DamagedFile: A file of it, or of mended records, is damaged.
    """
    if not (config.is_live and (config.root / CURRENT).exists()):
        return LiveRecords()
    live = LiveLog(config.current.folder / LIVE, config.project)
    # What waits is read first: then each message that is judged meanwhile is in one of the two.
    mended = {(one.record, one.replay): one for one in read_mended(config.root)}
    # What became of records is read before them: then each is among those that follow.
    outcomes = [row for table in mended_outcomes(live) for row in table.to_pylist()]
    found: dict[str, LiveRecord] = {}
    for table in rejected_records(live):
        for row in table.to_pylist():
            carried = row.pop("message_key", None), row.pop("message_timestamp_us", None)
            headers = row.pop("message_headers", None) or ()
            types = row.pop("row_types", None)
            name = record_id(row["stream"], row["origin"], row["payload"])
            if row["stream"] in config.sources:
                found[name] = LiveRecord(
                    row,
                    carried[0],
                    -1 if carried[1] is None else carried[1],
                    tuple((one["name"], one["value"]) for one in headers),
                    types=types,
                )
    judged = {(row["record"], row["replay"]) for row in outcomes}
    ids = {row["record"] for row in outcomes if not row["reason"]}
    ids |= {name for name, replay in mended if (name, replay) not in judged}
    accepted: dict[str, MendedMessage] = {}
    payloads: dict[str, bytes] = {}
    for row in outcomes:
        name = row["record"]
        message = mended.pop((name, row["replay"]), None)
        if name not in found:
            continue
        if not row["reason"]:
            payloads[name] = found.pop(name).record["payload"]
            if message is not None:
                accepted[name] = message
            continue
        before = found[name]
        newest = {key: row[key] for key in ("stage", "reason")}
        newest["detail"] = f"as mended in {row['line']}: {row['detail']}"
        found[name] = replace(
            before, record={**before.record, **newest}, replays=before.replays + 1
        )
    waiting = {name: one for (name, _), one in mended.items() if name in found}
    return LiveRecords(found, accepted, waiting, payloads, frozenset(ids))
