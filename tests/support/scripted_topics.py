"""Topics that a test scripts, for a live reader's logic; a real broker has tests of its own.

`ScriptedTopic` is a fake of `pipelines.io.live.live_reader.TopicReader`: its offsets have messages,
or gaps (markers and aborted messages) over which a poll moves without giving anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tests.support.strategies import to_batch
from tidemill import Entity, EventStream, FeatureView, Project, Request, count
from tidemill.features.contract import HOUR, SECOND
from tidemill.features.definitions import Schema
from tidemill.features.errors import BrokerUnreachable
from tidemill.pipelines.ingest.mended_live import MendedFiles
from tidemill.pipelines.io.files.judged_rows import Judge
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.live_reader import LiveReader
from tidemill.pipelines.io.live.live_source import Ends, LiveSource, Pace
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import Decoder
from tidemill.pipelines.io.payloads.json_rows import JsonDecoder
from tidemill.pipelines.io.payloads.metadata import Metadata
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.request_ids import ids_so_far

START: Final = 1_700_000_000 * SECOND
"""When the clock of a `Rig` begins."""
_SCHEMA: Final[Schema] = {
    "id": "string", "at": "timestamp", "sent_at": "timestamp", "card": "string",
    "amount": "float64",
}  # fmt: skip
PAID: Final = EventStream(
    "paid", _SCHEMA, "at", "id", transport=["sent_at"], out_of_orderness="1s",
    allowed_lateness="2s", max_ahead="10s",
)  # fmt: skip
ASKED: Final = Request(
    "asked", _SCHEMA, "at", "id", out_of_orderness="1s", max_ahead="10s"
)  # fmt: skip
PROJECT: Final = Project(
    "live",
    ASKED,
    [FeatureView("by_card", Entity("card"), PAID, "1m", {"paid_1h": count(over="1h")})],
)
EAGER: Final = Pace(rest_s=0.0, beat_s=0.0, check_s=0.0, quiet_us=SECOND)
"""Asks the broker in every step, and never rests."""


def row(name: str, at_us: int, amount: float = 1.0, **more: Any) -> bytes:
    """Return a row as JSON, without the time of receipt."""
    at = f"{np.datetime64(at_us, 'us')}Z"
    return json.dumps({"id": name, "at": at, "card": "c", "amount": amount, **more}).encode()


@dataclass
class ScriptedTopic:
    """A topic of a test.

    Attributes:
        count: How many partitions it has.
        first: The first offset of each.
        stable: Partition to its last stable offset, where a transaction is open.
        hidden: Partitions whose messages are there and that no poll gives.
        left_out: Partitions that the reader does not ask for now.
        is_away: Whether the broker does not answer.
    """

    count: int = 1
    first: int = 0
    stable: dict[int, int] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)
    is_away: bool = False

    def __post_init__(self) -> None:
        self._messages: list[list[tuple[int, bytes | None, bytes | None] | None]] = [
            [] for _ in range(self.count)
        ]
        self._at, self._polls = [self.first] * self.count, 0
        self._firsts = [self.first] * self.count

    def send(
        self,
        *values: bytes | None,
        partition: int = 0,
        sent_us: int = START,
        key: bytes | None = None,
    ) -> None:
        """Add messages."""
        self._messages[partition] += [(sent_us, key, value) for value in values]

    def grow(self, count: int) -> None:
        """Get more partitions: so many in all."""
        self._messages += [[] for _ in range(count - self.count)]
        self._firsts += [0] * (count - self.count)
        self.count = count

    def add(self, positions: Mapping[int, int]) -> None:
        """See `TopicReader`."""
        assert [*positions] == [*range(len(self._at), len(self._at) + len(positions))]
        self._at += positions.values()

    def skip(self, offsets: int, partition: int = 0) -> None:
        """Add offsets without messages."""
        self._messages[partition] += [None] * offsets

    def seek(self, offsets: Sequence[int]) -> None:
        """Read on from these offsets, as a new reader would."""
        self._at = [*offsets]

    def poll(self, wait_s: float, max_messages: int) -> list[Messages]:
        """See `TopicReader`."""
        given: list[Messages] = []
        self._polls += 1
        order = np.roll(np.arange(len(self._at)), self._polls).tolist()  # each is first in turn
        for partition in order:
            if partition in self.hidden | self.left_out or self.is_away:
                continue
            found: list[tuple[int, int, bytes | None, bytes | None]] = []
            while max_messages and self._at[partition] < self._end(partition):
                offset = self._at[partition]
                self._at[partition] += 1
                if (
                    message := self._messages[partition][offset - self._firsts[partition]]
                ) is not None:
                    found.append((offset, *message))
                    max_messages -= 1
            if found:
                offsets, times, keys, values = zip(*found, strict=True)
                given.append(
                    Messages(
                        "topic", partition, np.array(offsets, np.int64), np.array(times, np.int64),
                        keys, values, [(("h", b"1"),)] * len(found),
                    )
                )  # fmt: skip
        return given

    def _end(self, partition: int) -> int:
        return self.stable.get(partition, self._firsts[partition] + len(self._messages[partition]))

    def leave_out(self, partitions: Collection[int]) -> None:
        """See `TopicReader`."""
        self.left_out = set(partitions)

    def positions(self) -> Mapping[int, int]:
        """See `TopicReader`."""
        return dict(enumerate(self._at))

    def ends(self) -> Mapping[int, Ends]:
        """See `TopicReader`."""
        if self.is_away:
            raise BrokerUnreachable("the broker is away")
        return {
            partition: Ends(
                self._end(partition), self._firsts[partition] + len(self._messages[partition])
            )
            for partition in range(len(self._at))
        }

    def partitions(self) -> int:
        """See `TopicReader`."""
        if self.is_away:
            raise BrokerUnreachable("the broker is away")
        return self.count


@dataclass
class Rig:
    """A live stream of a test: topics, logs, clocks, and a reader that can be restarted.

    Attributes:
        folder: Where its files are.
        paid: The topic of the events.
        asked: The topic of the requests.
        pace: How often the reader does what.
        clock: How quiet partitions are timed, of both.
        transform: The transform of the events.
        decoder: The decoder of the events; None for one of JSON.
        files: How many partitions of files each source has.
        file_rows: How many rows each of these has.
        now_us: The machine's clock.
        seconds: The clock that never steps back.
        columns: The columns of the events that come from beside the payload.
        mends: Whether the reader takes mended messages, of ``folder``.
        max_rejected: The share of rejected rows above which the reader tells of a flood.
        request: The requests.
        said: What the reader has said.
    """

    folder: Path
    paid: ScriptedTopic = field(default_factory=ScriptedTopic)
    asked: ScriptedTopic = field(default_factory=ScriptedTopic)
    pace: Pace = EAGER
    clock: Any = "wall"
    transform: Any = None
    decoder: Decoder | None = None
    files: int = 0
    file_rows: int = 0
    now_us: int = START
    seconds: float = 1_000.0
    columns: Mapping[str, str] = field(default_factory=dict)
    mends: bool = False
    max_rejected: float = 1.0
    request: Request = ASKED
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.build = self.folder / "build"
        self.log = Log(self.build, self.folder / "live")
        for definition, topic in ((PAID, self.paid), (self.request, self.asked)):
            for partition in range(self.files + topic.count):
                rows = file_rows(definition, self.file_rows if partition < self.files else 0)
                self.log.write(definition, partition, rows, np.full(len(rows), START - HOUR))
        self.live = LiveLog(self.folder / "live", PROJECT)
        self.live.begin(
            {
                name: LiveTopic(name, self.files, (topic.first,) * topic.count)
                for name, topic in (("asked", self.asked), ("paid", self.paid))
            }
        )
        self.reader = self.restarted()

    def restarted(self) -> LiveReader:
        """Return a new reader that goes on from the poll log, as after a kill."""
        log = PollLog(self.folder / "live" / "polls")
        begin = self.live.sealed().offsets
        after = LiveReader.offsets_after(log, begin)
        sources, order, begun = [], [], self.live.topics()
        for definition, topic in ((self.request, self.asked), (PAID, self.paid)):
            topic.seek(after[definition.name])
            sources.append(self._source(definition, topic, log))
        for definition in (PAID, self.request):
            order += [
                (definition.name, partition, self.file_rows if partition < self.files else None)
                for partition in range(self.files + len(begun[definition.name].offsets))
            ]
        names = [source.definition.name for source in sources]
        mended = MendedFiles(self.folder, self.live, names, self.said.append)
        self.reader = LiveReader(
            sources, order, log, after, self.pace,
            clock_us=lambda: self.now_us, seconds=lambda: self.seconds,
            mended=mended if self.mends else None, say=self.said.append,
        )  # fmt: skip
        return self.reader

    def _source(
        self, definition: EventStream | Request, topic: ScriptedTopic, log: PollLog
    ) -> LiveSource:
        ids = None
        if isinstance(definition, Request):
            polls = (Poll.decode(bytes(one.poll)) for one in log.read(self.live.sealed().number))
            unsealed = [part for poll in polls for part in poll.parts]
            ids = self.ids = ids_so_far(definition, self.log, self.files, unsealed)
        transform = self.transform if definition is PAID else None
        judge = Judge(
            definition, [], received="sent_at", transform=transform, ids=ids,
            clock_us=lambda: self.now_us,
        )  # fmt: skip
        read = judge.reader.columns
        columns = {"sent_at": "timestamp", **(self.columns if definition is PAID else {})}
        asked = None if read is None else [name for name in read if name not in columns]
        json_rows = JsonDecoder(Reader(definition.name, asked), Metadata(columns))
        decoder = self.decoder if definition is PAID and self.decoder else json_rows
        begun = self.live.topics()[definition.name]
        return LiveSource(
            definition, topic, decoder, judge, self.files, len(begun.offsets), self.clock,
            json_rows, self.max_rejected,
        )  # fmt: skip

    def step(self, seconds: float = 0.0) -> LoggedPoll | None:
        """Let time pass, and the reader step once."""
        self.now_us += round(seconds * SECOND)
        self.seconds += seconds
        return self.reader.step()

    def logged(self, after: int = 0) -> list[LoggedPoll]:
        """Return what is written down after a poll."""
        return list(PollLog(self.folder / "live" / "polls").read(after))

    def polls(self) -> list[Poll]:
        """Return the polls that are written down."""
        return [Poll.decode(bytes(one.poll)) for one in self.logged()]

    def rows(self, source: str) -> list[dict[str, Any]]:
        """Return the rows of a source that are written down, by poll and partition."""
        return [
            found
            for poll in self.polls()
            for part in poll.parts
            if part.source == source and part.rows is not None
            for found in part.rows.to_pylist()
        ]

    def rejected(self) -> list[dict[str, Any]]:
        """Return the rejected records that are written down."""
        found = [one.rejected for one in self.logged() if one.rejected is not None]
        return [record for batch in found for record in batch.to_pylist()]

    def watermark(self, source: str = "paid", partition: int = 0) -> int | None:
        """Return a partition's watermark in the last poll; None before the first."""
        polls = self.polls()
        if not polls:
            return None
        return next(
            part.watermark_us
            for part in polls[-1].parts
            if (part.source, part.partition) == (source, self.files + partition)
        )


def file_rows(definition: EventStream | Request, count: int) -> pa.Table:
    """Return rows of a file, with the declared columns."""
    rows = [
        {"id": f"f{n}", "at": START - HOUR, "sent_at": START - HOUR, "card": "f", "amount": 0.5}
        for n in range(count)
    ]
    return pa.Table.from_batches([to_batch(definition.schema, rows)])
