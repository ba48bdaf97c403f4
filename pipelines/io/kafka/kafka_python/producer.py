"""kafka-python's producer behind the port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from kafka import KafkaProducer
from kafka.errors import KafkaError, ProducerFencedError

from tidemill.features.errors import ConfigurationError, FencedWriter, MessagesNotWritten
from tidemill.pipelines.io.kafka.bounded_call import call_within
from tidemill.pipelines.io.kafka.client import BATCH_BYTES, LINGER_MS, Failed, ProducerSettings
from tidemill.pipelines.io.kafka.connection import Connection
from tidemill.pipelines.io.kafka.kafka_python.failures import FENCED, not_written, translated
from tidemill.pipelines.io.kafka.kafka_python.options import options
from tidemill.pipelines.io.messages import Headers

_CLOSE_S: Final = 1.0
_LEARN_S: Final = 0.05


class KafkaPythonProducer:
    """See `client.Producer`.

    Args:
        connection: How to connect.
        settings: How to write.
    """

    def __init__(self, connection: Connection, settings: ProducerSettings) -> None:
        self._give_up_s = settings.give_up_s
        give_up_ms = int(settings.give_up_s * 1_000)
        shared = options(connection)
        shared["request_timeout_ms"] = min(shared["request_timeout_ms"], give_up_ms - LINGER_MS)
        compression = None if settings.compression == "none" else settings.compression
        try:
            self._producer = KafkaProducer(
                **shared,
                acks="all",
                enable_idempotence=True,
                transactional_id=settings.transactional_id,
                transaction_timeout_ms=int(settings.transaction_s * 1_000),
                delivery_timeout_ms=give_up_ms,
                max_block_ms=give_up_ms,
                compression_type=compression,
                linger_ms=LINGER_MS,
                batch_size=BATCH_BYTES,
                max_request_size=max(settings.max_message_bytes, BATCH_BYTES),
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except KafkaError as error:
            raise translated(error, "connecting a producer") from error
        except (ValueError, RuntimeError):
            raise ConfigurationError(
                f"kafka.compression: kafka-python cannot compress by {settings.compression!r} "
                "here; use none or gzip, or install lz4, python-snappy or zstandard"
            ) from None
        if settings.transactional_id is not None:
            self._bounded(self._producer.init_transactions, "beginning as a transactional writer")

    def begin(self) -> None:
        """See `client.Producer.begin`."""
        self._bounded(self._producer.begin_transaction, "beginning a transaction")

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
        deadline_s = time.monotonic() + self._give_up_s
        while True:
            try:
                sent = self._producer.send(
                    topic,
                    value=value,
                    key=key,
                    headers=list(headers),
                    partition=number,
                    timestamp_ms=timestamp_ms,
                )
                break
            except KafkaError as error:
                raise not_written(error, doing) from error
            except ValueError as error:
                # It does not know of a partition that was added, and nothing public tells it.
                if time.monotonic() > deadline_s:
                    raise MessagesNotWritten(f"while {doing}: {error}") from error
                self._producer._metadata.request_update()
                time.sleep(_LEARN_S)
        sent.add_errback(lambda error: failed(not_written(error, doing)))

    def flush(self) -> None:
        """See `client.Producer.flush`."""
        try:
            self._producer.flush(self._give_up_s)
        except KafkaError as error:
            raise not_written(error, "waiting for messages to be written") from error

    def commit(self) -> None:
        """See `client.Producer.commit`."""
        self._bounded(self._producer.commit_transaction, "committing a transaction")

    def abort(self) -> None:
        """See `client.Producer.abort`."""
        self._bounded(self._producer.abort_transaction, "aborting a transaction")

    def close(self) -> None:
        """See `client.Producer.close`."""
        try:
            self._producer.close(timeout=_CLOSE_S)
        except KafkaError:
            # Messages wait for a broker that is away, and fail in time; its thread ends then.
            threading.Thread(target=self._close_later, daemon=True, name="kafka-close").start()

    def _close_later(self) -> None:
        with suppress(KafkaError):
            self._producer.close(timeout=self._give_up_s + _CLOSE_S)

    def _bounded(self, call: Callable[[], None], doing: str) -> None:
        """Call what kafka-python waits for without a bound."""
        try:
            call_within(self._give_up_s, call, doing)
        except TimeoutError:
            raise MessagesNotWritten(
                f"while {doing}: the broker did not answer within {self._give_up_s:g} s; open a "
                "new writer with the same transactional id, and look what was written"
            ) from None
        except ProducerFencedError as error:
            raise FencedWriter(f"while {doing}: {FENCED}") from error
        except KafkaError as error:
            raise not_written(error, doing) from error
