"""confluent-kafka's producer behind the port."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from tidemill.features.errors import BrokerError, ConfigurationError, MessagesNotWritten
from tidemill.pipelines.io.kafka.client import BATCH_BYTES, LINGER_MS, Failed, ProducerSettings
from tidemill.pipelines.io.kafka.confluent.failures import not_written
from tidemill.pipelines.io.kafka.confluent.options import options
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.messages import Headers

_UNKNOWN: Final = KafkaError._UNKNOWN_PARTITION
_LEARN_S: Final = 1.0
_FULL_S: Final = 0.05
_WAITING_KBYTES: Final = 64 << 10
_HEADROOM_BYTES: Final = 1 << 10


class ConfluentProducer:
    """See `client.Producer`.

    Args:
        connection: How to connect.
        settings: How to write.
    """

    def __init__(self, connection: Connection, settings: ProducerSettings) -> None:
        self._give_up_s = settings.give_up_s
        give_up_ms = int(settings.give_up_s * 1_000)
        transaction_ms = int(settings.transaction_s * 1_000)
        found: dict[str, Any] = {
            **options(connection),
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": settings.compression,
            "linger.ms": LINGER_MS,
            "batch.size": BATCH_BYTES,
            "message.max.bytes": settings.max_message_bytes + _HEADROOM_BYTES,
            "queue.buffering.max.kbytes": _WAITING_KBYTES,
            "partitioner": "murmur2_random",
            "message.timeout.ms": give_up_ms,
        }
        self._fatal: BrokerError | None = None
        if settings.transactional_id is not None:
            found["transactional.id"] = settings.transactional_id
            found["transaction.timeout.ms"] = transaction_ms
            found["message.timeout.ms"] = min(give_up_ms, transaction_ms)
        try:
            self._producer = Producer(found)
        except KafkaException as error:
            raise ConfigurationError(
                f"kafka: confluent-kafka does not take the settings of the writer: "
                f"{error.args[0].str()}"
            ) from error
        if settings.transactional_id is not None:
            self._ended(self._producer.init_transactions, "beginning as a transactional writer")

    def _serve(self, wait_s: float, doing: str) -> None:
        """Let deliveries be told; after a fatal error nothing succeeds, and each time it is raised.

        Its library tells the reason once, and then only that messages were purged.
        """
        try:
            self._producer.poll(wait_s)
        except KafkaException as error:
            self._fatal = not_written(error, doing)
        if self._fatal is not None:
            raise self._fatal

    def begin(self) -> None:
        """See `client.Producer.begin`."""
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise not_written(error, "beginning a transaction") from error

    def put(
        self,
        partition: tuple[str, int | None],
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int | None,
        failed: Failed,
    ) -> None:
        """See `client.Producer.put`."""
        topic, number = partition
        doing = f"writing to {topic!r}"

        def delivered(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failed(not_written(error, doing))

        deadline_s = time.monotonic() + self._give_up_s
        while True:
            try:
                self._producer.produce(
                    topic,
                    value=value,
                    key=key,
                    partition=-1 if number is None else number,
                    on_delivery=delivered,
                    timestamp=0 if timestamp_ms is None else timestamp_ms,
                    headers=list(headers),
                )
            except BufferError:
                if time.monotonic() > deadline_s:
                    raise MessagesNotWritten(
                        f"while {doing}: too many messages wait for the broker for "
                        f"{self._give_up_s:g} s; try again when it answers"
                    ) from None
                self._serve(_FULL_S, doing)
            except KafkaException as error:
                if error.args[0].code() != _UNKNOWN or time.monotonic() > deadline_s:
                    raise not_written(error, doing) from error
                # It does not know of a partition that was added: asking for the topic tells it.
                self._learn(topic)
            else:
                self._serve(0, doing)
                return

    def _learn(self, topic: str) -> None:
        with suppress(KafkaException):
            self._producer.list_topics(topic, timeout=_LEARN_S)
        self._producer.poll(_FULL_S)

    def flush(self) -> None:
        """See `client.Producer.flush`."""
        # Its own `flush` fails with a SystemError after a fatal error.
        self._serve(0, "waiting for messages to be written")
        deadline_s = time.monotonic() + self._give_up_s + 1.0
        while waiting := len(self._producer):
            self._serve(_FULL_S, "waiting for messages to be written")
            if time.monotonic() > deadline_s:
                break
        if waiting:
            raise MessagesNotWritten(
                f"the broker did not confirm {waiting} messages within {self._give_up_s:g} s"
            )

    def commit(self) -> None:
        """See `client.Producer.commit`."""
        self._ended(self._producer.commit_transaction, "committing a transaction")

    def abort(self) -> None:
        """See `client.Producer.abort`."""
        self._ended(self._producer.abort_transaction, "aborting a transaction")

    def close(self) -> None:
        """See `client.Producer.close`."""
        with suppress(KafkaException):
            self._producer.purge()
            self._producer.poll(0)

    def _ended(self, call: Callable[[float], None], doing: str) -> None:
        """Call what begins or ends transactions, again while its library says so."""
        deadline_s = time.monotonic() + self._give_up_s
        while True:
            try:
                call(max(0.1, deadline_s - time.monotonic()))
            except KafkaException as error:
                if error.args[0].retriable() and time.monotonic() < deadline_s:
                    continue
                raise not_written(error, doing) from error
            else:
                return
