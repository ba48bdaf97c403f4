"""The topics of live sources: where a stream begins to read them, and how they are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tidemill.features.definitions import Request
from tidemill.features.errors import BrokerError, RecreatedTopic
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.kafka_section import EARLIEST, HANDOFF, LATEST, PAYLOADS, KafkaTopic
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.ingest.build_topics import BuildTopic
from tidemill.pipelines.io.files.judged_rows import Judge
from tidemill.pipelines.io.files.readers import Reader as RowReader
from tidemill.pipelines.io.kafka.bounds import bytes_of
from tidemill.pipelines.io.kafka.child_process.library import InChildProcess
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Partition
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_source import Ends, LiveSource
from tidemill.pipelines.io.live.lost import base_of, offset_of
from tidemill.pipelines.io.live.steady_clock import wall_clock_us
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.messages import Messages, joined
from tidemill.pipelines.io.payloads.decoders import decoder
from tidemill.pipelines.io.payloads.decoding import Decoder
from tidemill.pipelines.io.payloads.metadata import Metadata
from tidemill.pipelines.io.poll import PollPart
from tidemill.pipelines.io.request_ids import RequestIds, ids_so_far

_POLL_BYTES: Final = 4 << 20
"""The most bytes of a source in one poll; one message may be larger."""


def ask_topics(
    config: Configuration, known: Mapping[str, int] | None = None
) -> dict[str, BuildTopic]:
    """Ask the brokers where the stream will begin to read each topic.

    Args:
        config: The configuration.
        known: Source to the number of partitions that a stream has read already. Partitions that
            its topic has got since begin at their beginning: nobody has read them.

    Raises:
        BrokerError: A broker cannot be reached, or a topic does not exist.
    """
    found = {}
    for name, source in sorted(config.sources.items()):
        if source.kafka is not None:
            read = (known or {}).get(name)
            found[name] = _begin(source.kafka, config.splits.evaluate_until_us, read)
    return found


def _begin(topic: KafkaTopic, handoff_us: int, known: int | None) -> BuildTopic:
    with Reader(choose_client(topic.connection.client), topic.connection) as reader:
        identity = reader.topic_id(topic.topic)
        places = [Partition(topic.topic, number) for number in reader.partitions(topic.topic)]
        begin = reader.beginnings(places)
        first = tuple(begin[place] for place in places)
        if topic.start == EARLIEST:
            return BuildTopic(topic.topic, first, identity)
        offsets = _offsets_at(reader, topic, places, handoff_us)
    if known is not None:
        offsets = *offsets[:known], *first[known:]
    return BuildTopic(topic.topic, offsets, identity)


def _offsets_at(
    reader: Reader, topic: KafkaTopic, places: Sequence[Partition], handoff_us: int
) -> tuple[int, ...]:
    ends = {place: found.stable for place, found in reader.ends(places).items()}
    if topic.start == LATEST:
        return tuple(ends[place] for place in places)
    start_us = handoff_us if topic.start == HANDOFF else int(topic.start)
    # Where no message is that late, those to come are after the ends that were asked before.
    later = reader.offsets_at(start_us, places)
    return tuple(ends[place] if (found := later[place]) is None else found for place in places)


class TopicExtent(NamedTuple):
    """What a topic has now.

    Attributes:
        topic: Its name.
        id: Its id.
        first: The first offset that each partition holds.
        ends: The offset after the last message of each.
    """

    topic: str
    id: str
    first: tuple[int, ...]
    ends: tuple[int, ...]


def ask_extents(config: Configuration) -> dict[str, TopicExtent]:
    """Ask the brokers what the topic of each live source has now.

    Raises:
        BrokerError: A broker cannot be reached, or a topic does not exist.
    """
    found: dict[str, TopicExtent] = {}
    with ExitStack() as opened:
        readers: dict[Connection, Reader] = {}
        for name, source in sorted(config.sources.items()):
            if (topic := source.kafka) is None:
                continue
            connection = topic.connection
            reader = readers.get(connection)
            if reader is None:
                client = choose_client(connection.client)
                reader = opened.enter_context(Reader(client, connection))
                readers[connection] = reader
            identity = reader.topic_id(topic.topic)
            places = [Partition(topic.topic, number) for number in reader.partitions(topic.topic)]
            first, ends = reader.beginnings(places), reader.ends(places)
            found[name] = TopicExtent(
                topic.topic,
                identity,
                tuple(first[place] for place in places),
                tuple(ends[place].high for place in places),
            )
    return found


@dataclass
class _TopicReader:
    """A topic, as the live reader reads it.

    A poll takes more than one answer of a reader where that much is there, since most of what a
    poll costs the stages behind it does not depend on its size.

    Attributes:
        reader: Reads it by the broker's offsets.
        topic: Its name.
        bases: What positions of each partition have more (`pipelines.io.live.lost.base_of`).
        failed: An error that came after messages of one poll, for the next one.
    """

    reader: Reader
    topic: str
    bases: Sequence[int]
    failed: BrokerError | None = None

    def poll(self, wait_s: float, max_messages: int) -> Sequence[Messages]:
        if self.failed is not None:
            raise self.failed
        given: list[Messages] = []
        max_bytes = _POLL_BYTES
        while max_messages > 0 and max_bytes > 0:
            try:
                found = self.reader.poll(wait_s, max_bytes, max_messages)
            except BrokerError as error:
                if not given:
                    raise
                self.failed = error  # what was given before is written down first
                break
            if not found:
                break
            given += found
            wait_s = 0.0
            max_messages -= sum(map(len, found))
            max_bytes -= sum(map(bytes_of, found))
        found = joined(given)
        return [self._placed(messages) for messages in found] if any(self.bases) else found

    def _placed(self, messages: Messages) -> Messages:
        return replace(messages, offsets=messages.offsets + self.bases[messages.partition])

    def leave_out(self, partitions: Collection[int]) -> None:
        self.reader.leave_out([Partition(self.topic, number) for number in partitions])

    def positions(self) -> Mapping[int, int]:
        return {
            place.partition: offset + self.bases[place.partition]
            for place, offset in self.reader.positions().items()
        }

    def ends(self) -> Mapping[int, Ends]:
        return {
            place.partition: Ends(*(offset + self.bases[place.partition] for offset in ends))
            for place, ends in self.reader.ends().items()
        }

    def partitions(self) -> int:
        return len(self.reader.partitions(self.topic))

    def add(self, positions: Mapping[int, int]) -> None:
        self.reader.add({Partition(self.topic, n): offset_of(at) for n, at in positions.items()})
        self.bases = [*self.bases, *(base_of(positions[number]) for number in sorted(positions))]


@contextmanager
def open_topics(
    config: Configuration,
    log: Log,
    unsealed: Iterable[PollPart],
    topics: Mapping[str, LiveTopic],
    offsets: Mapping[str, Sequence[int]],
    topic_ids: Mapping[str, str] | None = None,
) -> Iterator[list[LiveSource]]:
    """Open the topics of all live sources for a live reader.

    Args:
        config: The configuration.
        log: The log of the stream, with the live rows that are sealed.
        unsealed: Those that are written down and not sealed yet.
        topics: The topics as the live log began with them.
        offsets: Source to the position of each partition at which reading begins
            (`pipelines.io.live.lost`).
        topic_ids: Source to the id of the topic that has these positions, where it is known.

    Yields:
        The live sources, by ascending name.

    Raises:
        BrokerError: A broker cannot be reached, a topic does not exist, is another one, or does not
            hold an offset any more.
    """
    request = config.project.request
    asked = topics.get(request.name)
    begins = log.partitions(request.name) if asked is None else asked.first
    ids = ids_so_far(request, log, begins, unsealed)
    with ExitStack() as opened:
        # A process without a partition would do nothing.
        most = max((len(begin) for begin in offsets.values()), default=1)
        readers = min(config.stream.readers, most)
        client = opened.enter_context(InChildProcess(readers=readers))
        sources = []
        for name, begin in sorted(offsets.items()):
            source = config.sources[name]
            assert source.kafka is not None
            reader = opened.enter_context(Reader(client, source.kafka.connection))
            name_of_topic = source.kafka.topic
            reader.assign(
                {Partition(name_of_topic, n): offset_of(at) for n, at in enumerate(begin)}
            )
            # Asked after the positions are given: what comes later is watched by the reader.
            identity = reader.topic_id(name_of_topic)
            if identity != (topic_ids or {}).get(name, identity):
                raise RecreatedTopic(
                    f"the topic {name_of_topic!r} of {name!r} was deleted and made again while the "
                    "stream began; run it again"
                )
            topic = _TopicReader(reader, name_of_topic, [base_of(at) for at in begin])
            first, partitions = topics[name].first, len(topics[name].offsets)
            made = _live_source(config, source, topic, first, partitions, ids)
            sources.append(replace(made, topic_id=identity))
        yield sources


def _live_source(
    config: Configuration,
    source: Source,
    reader: _TopicReader,
    first: int,
    partitions: int,
    ids: RequestIds,
) -> LiveSource:
    definition = config.project.definition(source.name)
    made = made_of(config, source, ids)
    assert source.kafka is not None
    return LiveSource(
        definition,
        reader,
        made.decoder,
        made.judge,
        first,
        partitions,
        "messages" if source.kafka.clock == "messages" else "wall",
        made.rows,
        source.max_rejected,
    )


class MadeOf(NamedTuple):
    """What makes rows of the messages of a source, and judges them.

    Attributes:
        decoder: Decodes its messages.
        rows: Decodes single rows in JSON, with the columns that messages carry beside.
        judge: Judges its rows.
    """

    decoder: Decoder
    rows: Decoder
    judge: Judge

    def alone(self) -> tuple[Decoder, Decoder, Judge]:
        """Return decoders, and a judge that knows nothing of other rows."""
        return self.decoder, self.rows, self.judge.alone()


def made_of(config: Configuration, source: Source, ids: RequestIds | None = None) -> MadeOf:
    """Return what makes rows of the messages of a source with a topic.

    Args:
        config: The configuration.
        source: The source.
        ids: The ids of the requests so far; None to begin with none.
    """
    definition = config.project.definition(source.name)
    judge = Judge(
        definition,
        [],
        zone=source.zone,
        ambiguous=source.ambiguous,
        transform=source.transform,
        received=source.received,
        ids=ids if isinstance(definition, Request) else None,
        clock_us=wall_clock_us,
    )
    topic = source.kafka
    assert topic is not None
    assert source.received is not None
    columns = {**topic.columns}
    if source.received not in columns:
        columns[source.received] = "timestamp"
    reads = judge.reader.columns
    asked = None if reads is None else [name for name in reads if name not in columns]
    reader, metadata, nulls = RowReader(source.name, asked), Metadata(columns), source.nulls or ()
    return MadeOf(
        decoder(
            payload_format(source),
            reader,
            metadata=metadata,
            nulls=nulls,
            tombstones=topic.tombstones,
            schema=topic.schema,
            message=topic.message,
            registry=None if topic.registry is None else topic.registry.place,
            frame=topic.frame,
        ),
        decoder("json", reader, metadata=metadata, nulls=nulls),
        judge,
    )


def payload_format(source: Source) -> str:
    """Return the format of a live source's messages."""
    assert source.kafka is not None
    of_source = source.format if source.format in PAYLOADS else None
    return source.kafka.format or of_source or "json"
