"""The port to Kafka: what a client library must do for `reader.Reader` and `writer.Writer`.

A reader reads partitions that it is told, from positions that it is told; no consumer group is
involved. A client promises:

* Positions never move by themselves. One that the partition does not hold is reported, not reset.
* Messages of aborted transactions are not given, nor are those of open ones or later ones.
* `Consumer.position` counts what was passed over without a message (aborted batches, transaction
  markers, compacted messages), at the latest when the client has come to the partition's end.
* What is read ahead is bounded: `PARTITION_BYTES` for each partition, `AHEAD_BYTES` in all, and one
  message where it is larger.
* A broker that is away is connected to again, with pauses of at most `BACKOFF_MS`.
* Every failure is an error of `features.errors.BrokerError`'s tree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple, Protocol, TypeAlias

from tidemill.features.errors import BrokerError
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.messages import Headers, Messages

PARTITION_BYTES: Final = 1 << 20
AHEAD_BYTES: Final = 16 << 20
BACKOFF_MS: Final = 1_000
METADATA_AGE_MS: Final = 10_000
REQUEST_MS: Final = 10_000
"""How long a request may take until its connection counts as broken."""
ASK_MS: Final = 3_000
"""How long an asker waits for an answer."""
LINGER_MS: Final = 5
"""How long a writer waits for more messages of a batch."""
BATCH_BYTES: Final = 1 << 18


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


Positions: TypeAlias = Mapping[Partition, int]
"""The offset of the next message of each partition."""


class Ends(NamedTuple):
    """Where a partition ends.

    Attributes:
        stable: The last stable offset: no transaction before it is open. A reader comes this far.
        high: The high watermark: the offset after the last message that all replicas have.
    """

    stable: int
    high: int


class Topic(NamedTuple):
    """What the cluster says of a topic.

    Attributes:
        id: Its id; a topic that is made again has another one.
        partitions: The numbers of its partitions, ascending.
    """

    id: str
    partitions: tuple[int, ...]


class Lost(NamedTuple):
    """A position that its partition does not hold.

    Attributes:
        position: The position.
        truncated: Whether messages before it were replaced by others, so that it may seem held.
    """

    position: int
    truncated: bool


class Taken(NamedTuple):
    """What a consumer gives at once.

    Attributes:
        messages: Messages, of each partition in order.
        lost: Partitions that do not hold their position; they give nothing more.
    """

    messages: list[Messages]
    lost: dict[Partition, Lost]


class Consumer(Protocol):
    """Reads partitions ahead, and gives what it has."""

    def assign(self, positions: Positions) -> None:
        """Read these partitions from these positions; what was read of others is dropped."""

    def take(self, wait_s: float, max_messages: int) -> Taken:
        """Return messages that are there, or wait for some.

        Raises:
            BrokerError: What cannot be mended by trying again; a broker that is away is no error.
        """

    def position(self, partition: Partition) -> int:
        """Return the offset after all that was given or passed over."""

    def pause(self, partitions: Collection[Partition]) -> None:
        """Give no messages of these partitions."""

    def resume(self, partitions: Collection[Partition]) -> None:
        """Give messages of these partitions again."""

    def close(self) -> None:
        """Disconnect."""


class Asker(Protocol):
    """Asks the cluster; every answer is to a request that begins after the call.

    Methods may be called from several threads. Each tries once, for about `ASK_MS`.

    Raises:
        BrokerUnreachable: The broker does not answer for now.
        NoSuchTopic: A topic or a partition does not exist.
        NotAuthorised: The user may not ask this.
    """

    def topics(self, names: Collection[str]) -> dict[str, Topic]:
        """Return the topics, each under its name."""

    def ends(self, partitions: Collection[Partition]) -> dict[Partition, Ends]:
        """Return where partitions end."""

    def beginnings(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Return the first offsets that partitions hold."""

    def offsets_at(self, partitions: Collection[Partition], time_ms: int) -> dict[Partition, int]:
        """Return the first offset with this timestamp or a later one; -1 if there is none."""

    def commit(self, group: str, positions: Positions) -> None:
        """Commit positions for a consumer group that has no members."""

    def largest_message(self, topic: str) -> int | None:
        """Return the topic's ``max.message.bytes``, or None if the broker does not tell."""

    def close(self) -> None:
        """Disconnect."""


Failed: TypeAlias = Callable[[BrokerError], None]
"""Is told why a message was not written, from any thread."""


class Producer(Protocol):
    """Writes messages idempotently, and in transactions if it was opened with an id.

    A call that does not succeed in time, ``give_up_s``, raises `MessagesNotWritten` or
    `BrokerUnreachable`.
    """

    def begin(self) -> None:
        """Begin a transaction."""

    def put(
        self,
        partition: tuple[str, int | None],
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
        failed: Failed,
    ) -> None:
        """Hand over a message; None for the partition chooses by murmur2 of the key, as Java does.

        The topic and the partition exist, though the producer may not know of them yet. Waits while
        too much is waiting to be sent.
        """

    def flush(self) -> None:
        """Wait until every message was confirmed or has failed."""

    def commit(self) -> None:
        """Commit the transaction.

        Raises:
            FencedWriter: Another producer has the transactional id.
        """

    def abort(self) -> None:
        """Abort the transaction; see `commit`."""

    def close(self) -> None:
        """Disconnect, without waiting for messages."""


class Client(Protocol):
    """A client library."""

    def consumer(self, connection: Connection) -> Consumer:
        """Connect a consumer."""

    def asker(self, connection: Connection) -> Asker:
        """Connect an asker."""

    def producer(self, connection: Connection, settings: ProducerSettings) -> Producer:
        """Connect a producer; one with a transactional id fences those before it."""


class ProducerSettings(NamedTuple):
    """How to write.

    Attributes:
        transactional_id: Writes in transactions under this id; None writes without.
        compression: ``none``, ``gzip``, ``lz4``, ``snappy`` or ``zstd``.
        max_message_bytes: The largest message that is accepted.
        give_up_s: How long to try again while the broker is away, in seconds.
        transaction_s: When the broker aborts a transaction by itself, in seconds.
    """

    transactional_id: str | None = None
    compression: str = "none"
    max_message_bytes: int = 1_000_000
    give_up_s: float = 60.0
    transaction_s: float = 60.0
