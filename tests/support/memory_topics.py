"""Topics in the memory of a test, in the place of a broker's, and a project that reads them.

`MemoryTopics` answers what `pipelines.io.kafka.reader.Reader` answers; a real broker has tests of
its own. `TopicProject.read` reads like a live stream, by a clock of its own and without an engine;
`tidemill stream` in the same process reads these topics too.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pytest

from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
    col,
    count,
    last,
    sum,
)
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import PositionOutOfRange, RecreatedTopic
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration, Splits, StreamOptions
from tidemill.pipelines.config.kafka_section import KafkaTopic
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.ingest import committed_offsets
from tidemill.pipelines.ingest import topics as topics_module
from tidemill.pipelines.ingest.build_topics import read_topics
from tidemill.pipelines.ingest.topics import open_topics
from tidemill.pipelines.io.kafka.client import Ends, Partition
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.live_reader import LiveReader
from tidemill.pipelines.io.live.live_records import LiveOrigin
from tidemill.pipelines.io.live.live_source import Pace
from tidemill.pipelines.io.live.lost import offset_of
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.run.progress import Progress, QuietProgress
from tidemill.pipelines.stream_run import stream as stream_module
from tidemill.serving.generations.current import Current
from tidemill.serving.stores.online_places import SqlitePlace

BEGIN: Final = 1_700_000_000 * SECOND // HOUR * HOUR
"""When the histories of a `TopicProject` begin."""
PACE: Final = Pace(rest_s=0.0, beat_s=0.0, check_s=0.0, quiet_us=2 * SECOND)

PAYMENTS: Final = EventStream(
    "payments",
    {"payment": "string", "at": "timestamp", "sent_at": "timestamp", "card": "string",
     "amount": "float64", "shop": "int64", "online": "bool"},
    "at", "payment", transport=["sent_at"], out_of_orderness="5s", allowed_lateness="10s",
    max_ahead="1h",
)  # fmt: skip
REFUNDS: Final = EventStream(
    "refunds",
    {"refund": "string", "at": "timestamp", "sent_at": "timestamp", "check": "string",
     "value": "float64"},
    "at", "refund", transport=["sent_at"], out_of_orderness="5s", max_ahead="1h",
)  # fmt: skip
CHECKS: Final = Request(
    "checks",
    {"check": "string", "at": "timestamp", "sent_at": "timestamp", "card": "string",
     "wanted": "float64"},
    "at", "check", out_of_orderness="5s", max_ahead="1h", inputs={"wanted": col("wanted")},
)  # fmt: skip
PROJECT: Final = Project(
    "shop",
    CHECKS,
    [
        FeatureView(
            "by_card",
            Entity("card"),
            PAYMENTS,
            "1m",
            {
                "payments_1h": count(over="1h"),
                "spent_1h": sum(col("amount"), over="1h"),
                "last_amount": last(col("amount"), over="2h"),
            },
        )
    ],
    label=Label("refunded", REFUNDS, col("value") > 0.5, on={"check": "check"}, horizon="10m"),
)
NAMES: Final = ("payments", "refunds", "checks")


def instant(time_us: int) -> str:
    return f"{np.datetime64(time_us, 'us')}Z"


@dataclass
class MemoryTopics:
    """Topics by name: partitions of messages, each with its timestamp in microseconds.

    Attributes:
        topics: The messages of each partition, also those that were deleted since.
        first: The first offset that a partition still has, where it is not 0.
        ids: The ids of topics that were made again.
        committed: What was committed, by group.
    """

    topics: dict[str, list[list[tuple[int, bytes]]]] = field(default_factory=dict)
    first: dict[Partition, int] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    committed: dict[str, dict[Partition, int]] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let sources read these topics in the place of a broker's."""
        monkeypatch.setattr(topics_module, "choose_client", lambda _: self)
        monkeypatch.setattr(topics_module, "InChildProcess", lambda readers: nullcontext(self))
        monkeypatch.setattr(topics_module, "Reader", MemoryReader)
        monkeypatch.setattr(committed_offsets, "choose_client", lambda _: self)

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete messages, as retention does."""
        self.first[Partition(topic, partition)] = offset

    def make_again(self, topic: str) -> None:
        """Delete a topic, and make another of its name."""
        partitions = self.topics[topic]
        self.topics[topic] = [[] for _ in partitions]
        self.ids[topic] = f"{self.id_of(topic)}x"
        for number in range(len(partitions)):
            self.first.pop(Partition(topic, number), None)

    def id_of(self, topic: str) -> str:
        """Return the id of a topic."""
        return self.ids.get(topic, f"id-{topic}")

    def begin_of(self, where: Partition) -> int:
        """Return the first offset that a partition has."""
        return self.first.get(where, 0)

    def asker(self, connection: Any) -> Self:
        return self

    def commit(self, group: str, positions: Mapping[Partition, int]) -> None:
        self.committed.setdefault(group, {}).update(positions)

    def close(self) -> None:
        return


class MemoryReader:
    """See `pipelines.io.kafka.reader.Reader`."""

    def __init__(self, topics: MemoryTopics, connection: Any) -> None:
        self._all, self._topics = topics, topics.topics
        self._at: dict[Partition, int] = {}
        self._ids: dict[str, str] = {}
        self._paused: frozenset[Partition] = frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def assign(self, positions: Mapping[Partition, int]) -> None:
        self._at = dict(positions)
        self._ids = {where.topic: self._all.id_of(where.topic) for where in positions}
        self._check()

    def add(self, positions: Mapping[Partition, int]) -> None:
        self._at |= positions
        self._check()

    def _check(self) -> None:
        for topic, known in self._ids.items():
            if self._all.id_of(topic) != known:
                raise RecreatedTopic(f"the topic {topic!r} was made again")
        for where, at in self._at.items():
            first, end = self._all.begin_of(where), self.ends([where])[where].high
            if not first <= at <= end:
                raise PositionOutOfRange(f"{where} does not hold {at}", *where, at, first, end)

    def topic_id(self, topic: str) -> str:
        return self._all.id_of(topic)

    def poll(self, wait_s: float, max_bytes: int, max_messages: int) -> list[Messages]:
        given = []
        self._check()
        for where, at in self._at.items():
            if where in self._paused:
                continue
            found = self._topics[where.topic][where.partition][at : at + max_messages]
            max_messages -= len(found)
            self._at[where] = at + len(found)
            if found:
                given.append(
                    Messages(
                        where.topic,
                        where.partition,
                        np.arange(at, at + len(found)),
                        np.array([sent for sent, _ in found], np.int64),
                        [None] * len(found),
                        [value for _, value in found],
                        [()] * len(found),
                    )
                )
        return given

    def leave_out(self, partitions: Collection[Partition]) -> None:
        self._paused = frozenset(partitions)

    def positions(self) -> dict[Partition, int]:
        return dict(self._at)

    def partitions(self, topic: str) -> tuple[int, ...]:
        return tuple(range(len(self._topics[topic])))

    def ends(self, partitions: Iterable[Partition] | None = None) -> dict[Partition, Ends]:
        asked = self._at if partitions is None else partitions
        sizes = {where: len(self._topics[where.topic][where.partition]) for where in asked}
        return {where: Ends(size, size) for where, size in sizes.items()}

    def beginnings(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return {where: self._all.begin_of(where) for where in partitions}

    def offsets_at(
        self, time_us: int, partitions: Iterable[Partition]
    ) -> dict[Partition, int | None]:
        return {
            where: next(
                (
                    offset
                    for offset, (sent, _) in enumerate(self._topics[where.topic][where.partition])
                    if sent >= time_us and offset >= self._all.begin_of(where)
                ),
                None,
            )
            for where in partitions
        }


@dataclass
class TopicProject:
    """A shop whose payments, refunds and checks go on in topics.

    Attributes:
        folder: Where its files are.
        topics: Its topics, installed.
        partitions: How many partitions each topic has.
        files: Whether there are files from before the topics.
        begin_us: When the files begin; they end an hour later.
        until_us: The end of the evaluation; the first one is where the files end.
        seed: Of everything random.
        poll_rows: The most rows of a poll of a stream.
        archive: Where rows of topics are kept.
        savepoint_every_us: How often a stream keeps its state.
        quiet_us: How long a message may be on its way to the topics: of a silent partition nothing
            is known of the time after it.
        joiners: How many joiners a stream has.
    """

    folder: Path
    topics: MemoryTopics
    partitions: int = 2
    files: bool = True
    begin_us: int = BEGIN
    until_us: int = 0
    seed: int = 1
    poll_rows: int = 4096
    archive: Archive | None = None
    savepoint_every_us: int = 10 * SECOND
    quiet_us: int = 2 * SECOND
    joiners: int = 1
    project: Project = PROJECT

    @classmethod
    def of_now(
        cls,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        ago_us: int = 2 * MINUTE,
        now_us: int | None = None,
        **options: Any,
    ) -> Self:
        """Return a project whose topics are installed, and whose files end shortly before now.

        Args:
            folder: Where its files are.
            monkeypatch: Installs the topics.
            ago_us: How long before now, to the minute, the files end.
            now_us: The instant that is now; None for that of the clock.
            options: Its other attributes.
        """
        topics = MemoryTopics()
        topics.install(monkeypatch)
        now_us = (now_us or time.time_ns() // 1_000) // MINUTE * MINUTE
        return cls(folder, topics, begin_us=now_us - ago_us - HOUR, **options)

    def __post_init__(self) -> None:
        self.until_us = self.until_us or self.begin_us + HOUR
        self.now_us = self.until_us
        self.random = random.Random(self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.numbers = dict.fromkeys(NAMES, 0)
        self.rows: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in NAMES}
        for name in NAMES:
            self.topics.topics[name] = [[] for _ in range(self.partitions)]
            self.rows[name] = [[] for _ in range(1 + self.partitions)]
        if self.files:
            for at_us in range(self.begin_us, self.begin_us + HOUR, 40 * SECOND):
                for name, row in self._some(at_us):
                    self.rows[name][0].append(row)
        for name in NAMES:
            self.write_file(self.folder / f"{name}.csv", name, self.rows[name][0])

    def _some(self, at_us: int) -> list[tuple[str, dict[str, Any]]]:
        """Return rows of about an instant, by source; some come late."""
        found = []
        card = f"c-{self.random.randrange(5)}"
        sent = instant(at_us)
        late_us = self.random.choice([0, 0, 0, 3 * SECOND, 8 * SECOND])
        number = self.numbers["payments"]
        self.numbers["payments"] += 1
        found.append(
            (
                "payments",
                {
                    "payment": f"p-{number}", "at": instant(at_us - late_us), "sent_at": sent,
                    "card": self.random.choice([card, card, None]),
                    "amount": self.random.randrange(10_000) / 100,
                    "shop": self.random.choice([number, None]), "online": number % 2 == 0,
                },
            )
        )  # fmt: skip
        if self.random.random() < 0.6:
            number = self.numbers["checks"]
            self.numbers["checks"] += 1
            found.append(
                (
                    "checks",
                    {
                        "check": f"q-{number}", "at": sent, "sent_at": sent, "card": card,
                        "wanted": number / 4,
                    },
                )
            )  # fmt: skip
            if number and self.random.random() < 0.8:
                found.append(
                    (
                        "refunds",
                        {
                            "refund": f"r-{number}", "at": sent, "sent_at": sent,
                            "check": f"q-{number - 1}", "value": float(number % 2),
                        },
                    )
                )  # fmt: skip
        return found

    def file_columns(self, name: str) -> list[str]:
        """Return the columns that the files of a source have."""
        return list(PROJECT.definition(name).schema)

    def write_file(self, path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as csv; without rows only the names of the columns."""
        names = self.file_columns(name)
        lines = [",".join(names)]
        for row in rows:
            cells = ("" if row[column] is None else str(row[column]) for column in names)
            lines.append(",".join(cells))
        path.write_text("\n".join(lines) + "\n")

    def send(self, at_us: int, steps: int = 1, every_us: int = 20 * SECOND) -> None:
        """Send messages of some instants."""
        for number in range(steps):
            for name, row in self._some(at_us + number * every_us):
                partition = self.random.randrange(self.partitions)
                self.rows[name][1 + partition].append(row)
                value = {key: found for key, found in row.items() if key != "sent_at"}
                sent_us = at_us + number * every_us
                self.topics.topics[name][partition].append((sent_us, json.dumps(value).encode()))

    def config(self, **changes: Any) -> Configuration:
        """Return the configuration."""
        sources = {
            name: Source(
                name,
                (str(self.folder / f"{name}*.csv"),) if self.files else (),
                received="sent_at",
                kafka=KafkaTopic(
                    bootstrap=("memory:1",), topic=name, format="json", quiet_us=self.quiet_us
                ),
            )
            for name in NAMES
        }
        found = Configuration(
            path=self.folder / "tidemill.yaml",
            project_name="project:project",
            project=self.project,
            root=self.folder / "run",
            shards=2,
            sources=sources,
            splits=Splits(self.until_us - 10 * MINUTE, self.until_us, 1 << 60),
            online_store=SqlitePlace(self.folder / "run" / "online.db"),
            stream=StreamOptions(
                engine="fnapi",
                poll_rows=self.poll_rows,
                savepoint_every_us=self.savepoint_every_us,
                joiners=self.joiners,
            ),
            archive=self.archive,
        )
        return replace(found, **changes)

    @property
    def live(self) -> LiveLog:
        """The live log of the current generation."""
        return LiveLog(self.config().current.folder / LIVE, self.project)

    def read(self, steps: int = 1, seconds: float = 1.0, *, seals: bool = True) -> int:
        """Read the topics as a stream does, step by step; return the instant of the last poll."""
        config = self.config()
        current = config.current
        log, live = stream_log(current, self.project), self.live
        built = read_topics(current.build_folder)
        live.begin(
            {
                name: LiveTopic(name, log.partitions(name) - len(topic.offsets), topic.offsets)
                for name, topic in built.items()
            },
            LiveOrigin(self.until_us),
        )
        live.seal(current.build_folder, self.until_us)
        order = [
            (name, partition, log.digests(name, partition).rows if partition == 0 else None)
            for name in NAMES
            for partition in range(log.partitions(name))
        ]
        offsets = LiveReader.offsets_after(live.polls, live.sealed().offsets)
        with open_topics(config, log, [], live.topics(), offsets) as sources:
            reader = LiveReader(
                sources, order, live.polls, offsets, PACE,
                after_us=self.until_us - 1, clock_us=lambda: self.now_us,
                seconds=lambda: self.now_us / SECOND,
            )  # fmt: skip
            for _ in range(steps):
                self.now_us += round(seconds * SECOND)
                reader.step()
        live.polls.close()
        if seals:
            live.seal(current.build_folder, 1 << 60)
        return reader.received_us

    def stream(
        self,
        monkeypatch: pytest.MonkeyPatch,
        progress: Progress | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run `tidemill stream` in this process until it has read all that the topics hold.

        Args:
            monkeypatch: Stops it.
            progress: Where progress is shown.
            meanwhile: What to do, in another thread, once it has read all for the first time; it
                may send more.
            options: Of `stream`.
        """
        failed: list[BaseException] = []

        @contextmanager
        def until_read(_: object) -> Iterator[threading.Event]:
            asked, ended = threading.Event(), threading.Event()

            def watch() -> None:
                try:
                    self.wait_until_read(ended)
                    meanwhile()
                    self.wait_until_read(ended)
                except BaseException as error:  # noqa: BLE001 - raised below
                    failed.append(error)
                asked.set()

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            try:
                yield asked
            finally:
                ended.set()
                watcher.join()

        monkeypatch.setattr(stream_module, "draining", until_read)
        summary = stream_module.stream(self.config(), progress or QuietProgress(), **options)
        if failed:
            raise failed[0]
        return summary

    def wait_until_read(self, ended: threading.Event) -> None:
        """Wait until all that the topics hold is read, or the stream has ended."""
        while not ended.wait(0.05):
            last = self.live.polls.last() if self.live.exists else None
            if last is not None and all(
                [offset_of(at) for at in last.offsets[name]]
                == [len(one) for one in self.topics.topics[name]]
                for name in NAMES
            ):
                return

    def read_until(self) -> int:
        """Return the instant of the last poll of the topics; 0 before any."""
        live = self.live
        received = live.cuts().received_us if live.exists else ()
        return int(received[-1]) if len(received) else 0

    @property
    def current(self) -> Current:
        """The current folders."""
        return self.config().current
