"""Writing messages idempotently, and in transactions: no message is lost without an error.

A message that could not be written raises at `Writer.flush` or `Writer.commit` at the latest. A
writer with a transactional id fences those before it with the same id: they raise `FencedWriter`.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Final

from tidemill.features.errors import (
    BrokerError,
    BrokerUnreachable,
    FencedWriter,
    InputError,
    MessagesNotWritten,
    MessageTooLarge,
    NoSuchTopic,
)
from tidemill.pipelines.io.kafka.client import Client, ProducerSettings, Topic
from tidemill.pipelines.io.kafka.closing import Closing
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.reach import reach
from tidemill.pipelines.io.messages import Headers

_OVERHEAD_BYTES: Final = 70
"""What a batch of one message adds to it."""
_AGAIN_S: Final = 0.1
_US_PER_MS: Final = 1_000


class Writer(Closing):
    """Writes messages to topics that exist; one thread may use it at a time.

    Args:
        client: The client library, from `choosing.choose_client`.
        connection: How to connect.
        settings: How to write.

    Raises:
        BrokerError: The cluster cannot be reached; see `reach.reach`.
    """

    def __init__(
        self,
        client: Client,
        connection: Connection,
        settings: ProducerSettings | None = None,
    ) -> None:
        reach(connection)
        self._settings = settings or ProducerSettings()
        self._open = functools.partial(client.producer, connection, self._settings)
        self._asker = client.asker(connection)
        try:
            self._producer = self._open()
        except BaseException:
            self._asker.close()
            raise
        self._topics: dict[str, Topic] = {}
        self._lock = threading.Lock()
        self._failures: list[BrokerError] = []
        self._largest: dict[str, int] = {}
        self._spent = False
        """Whether a message failed: an idempotent producer may refuse whatever follows it."""
        self._ended: BrokerError | None = None
        """Why nothing can be written any more."""

    def begin(self) -> None:
        """Begin a transaction; messages can be sent then.

        Raises:
            FencedWriter: Another writer has the transactional id.
            InputError: The writer has no transactional id.
        """
        self._needs_transactions()
        self._check_not_ended()
        if self._spent:
            self._reopen()
        self._for_good(self._producer.begin)

    def send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        timestamp_us: int | None = None,
    ) -> None:
        """Hand over a message; it is written soon, and surely when `flush` or `commit` returns.

        Args:
            topic: The topic; it must exist.
            partition: The partition; None chooses by the key, as Java's client does.
            key: The key; None for none.
            value: The value; None deletes the key in a compacted topic.
            headers: Names and values; a name may occur more than once.
            timestamp_us: Its timestamp, in microseconds since 1970; Kafka keeps whole milliseconds,
                the rest is cut off. None is now, and 1970-01-01T00:00:00 cannot be written.

        Raises:
            MessageTooLarge: It is larger than ``max_message_bytes``.
            NoSuchTopic: There is no such topic or partition.
            InputError: There is neither key nor value, a header has no value, or the timestamp is
                not after 1970-01-01T00:00:00.
            FencedWriter: Another writer has the transactional id.
            BrokerError: An earlier message was not written; see `flush`.
        """
        if key is None and value is None:
            raise InputError(f"a message to {topic!r} has neither key nor value; give one of them")
        size = len(key or b"") + len(value or b"") + _OVERHEAD_BYTES
        for name, content in headers:
            if content is None:
                raise InputError(f"the header {name!r} of a message to {topic!r} has no value")
            size += len(name.encode()) + len(content)
        if size > self._settings.max_message_bytes:
            raise MessageTooLarge(
                f"a message to {topic!r} has {size} bytes, more than max_message_bytes, "
                f"{self._settings.max_message_bytes}; raise the topic's max.message.bytes, which a "
                "stream takes for its limit when it starts or resumes"
            )
        if timestamp_us is not None and timestamp_us < _US_PER_MS:
            # Kafka keeps -1 for no timestamp, and confluent-kafka takes 0 for now.
            raise InputError(
                f"found the timestamp {timestamp_us} us of a message to {topic!r}, expected at "
                f"least {_US_PER_MS}: a millisecond after 1970-01-01T00:00:00"
            )
        self._check_place(topic, partition)
        self._check_not_ended()
        if self._failures:
            self.flush()
        if self._spent:
            if self._settings.transactional_id is not None:
                raise InputError("a message of this transaction was not written; abort it first")
            self._reopen()
        if size > self._largest.get(topic, 0):
            self._largest[topic] = size
        timestamp_ms = None if timestamp_us is None else timestamp_us // _US_PER_MS
        put = functools.partial(self._producer.put, (topic, partition), key, value, headers)
        self._for_good(lambda: put(timestamp_ms, self._failed))

    def _failed(self, error: BrokerError) -> None:
        with self._lock:
            self._failures.append(error)

    def flush(self) -> None:
        """Wait until all messages are written.

        After an error, each message since the last flush may be written or not: send them again.

        Raises:
            MessageTooLarge: The topic does not accept a message of this size.
            MessagesNotWritten: The broker did not accept or confirm messages in time.
            FencedWriter: Another writer has the transactional id.
            BrokerError: Another reason why a message was not written.
        """
        self._check_not_ended()
        try:
            self._producer.flush()
        except BrokerError as error:
            self._failed(error)
        with self._lock:
            failures, self._failures = self._failures, []
        largest, self._largest = self._largest, {}
        if failures:
            self._spent = True
            reason = self._why(failures, largest)
            if isinstance(reason, FencedWriter):
                self._ended = reason
            raise reason

    def commit(self) -> None:
        """Write all messages and commit the transaction.

        Raises:
            FencedWriter: Another writer has the transactional id; nothing was committed.
            MessagesNotWritten: It is not known whether the transaction was committed: the broker
                did not answer in time. This writer has to end; open a new one with the same id,
                and look what was written.
            BrokerError: A message was not written; nothing was committed: `abort`.
        """
        self._needs_transactions()
        self.flush()
        try:
            self._producer.commit()
        except BrokerError as error:
            self._ended = error
            raise

    def abort(self) -> None:
        """Abort the transaction: its messages are not given to readers of committed messages.

        Raises:
            FencedWriter: Another writer has the transactional id, and has aborted it.
            MessagesNotWritten: The broker did not answer in time.
        """
        self._needs_transactions()
        self._check_not_ended()
        if self._spent:
            # A new producer with the same id aborts what the one before left open.
            self._reopen()
        else:
            self._for_good(self._producer.abort)
        with self._lock:
            self._failures.clear()
        self._largest.clear()

    def close(self) -> None:
        """Disconnect; messages that were not flushed may be lost."""
        self._producer.close()
        self._asker.close()

    def _needs_transactions(self) -> None:
        if self._settings.transactional_id is None:
            raise InputError("the writer has no transactional id; give it one, or only flush")

    def _check_not_ended(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _for_good(self, call: Callable[[], None]) -> None:
        """Call, and once another writer has the transactional id, do nothing any more."""
        try:
            call()
        except FencedWriter as error:
            self._ended = error
            raise

    def _reopen(self) -> None:
        self._producer.close()
        self._producer = self._open()
        self._spent = False

    def _why(self, failures: list[BrokerError], largest: dict[str, int]) -> BrokerError:
        """Return the error that says most: once one message failed, others fail by consequence."""
        named = [error for error in failures if type(error) is not MessagesNotWritten]
        failure = named[0] if named else failures[0]
        exact = self._settings.compression == "none"
        if not isinstance(failure, MessageTooLarge) and (named or not exact):
            return failure
        for topic, size in largest.items():
            limit = self._asker.largest_message(topic)
            if limit is not None and size > limit:
                return MessageTooLarge(
                    f"the broker does not accept a message of {size} bytes to {topic!r}: the "
                    f"topic's max.message.bytes is {limit}; split it, or raise the topic's limit"
                )
        return failure

    def _check_place(self, topic: str, partition: int | None) -> None:
        known = self._topics.get(topic)
        if known is not None and (partition is None or partition in known.partitions):
            return
        known = self._topics[topic] = self._ask(topic)
        if partition is not None and partition not in known.partitions:
            raise NoSuchTopic(
                f"the topic {topic!r} has no partition {partition}, only "
                f"{len(known.partitions)}; correct the number"
            )

    def _ask(self, topic: str) -> Topic:
        deadline_s = time.monotonic() + self._settings.give_up_s
        while True:
            try:
                return self._asker.topics([topic])[topic]
            except BrokerUnreachable:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_AGAIN_S)
