"""confluent-kafka's errors, as ours."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from tidemill.features.errors import (
    BrokerError,
    BrokerUnreachable,
    DamagedMessages,
    FencedWriter,
    MessagesNotWritten,
    MessageTooLarge,
    NoSuchTopic,
    NotAuthorised,
    WrongCredentials,
)

FENCED: Final = (
    "another writer began with the same transactional id, so this one is fenced and has to end; "
    "its open transaction is aborted"
)

_REMEDIES: Final = {
    WrongCredentials: "correct the user or password",
    NotAuthorised: "grant it to the user",
    FencedWriter: FENCED,
    MessageTooLarge: "the broker does not accept so large a message",
    NoSuchTopic: "create it, or correct its name",
    DamagedMessages: "restore the topic from a replica",
    BrokerUnreachable: "try again",
}

_KINDS: Final[dict[int, type[BrokerError]]] = {
    KafkaError._AUTHENTICATION: WrongCredentials,
    KafkaError.SASL_AUTHENTICATION_FAILED: WrongCredentials,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: NotAuthorised,
    KafkaError.GROUP_AUTHORIZATION_FAILED: NotAuthorised,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: NotAuthorised,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: NotAuthorised,
    KafkaError._FENCED: FencedWriter,
    KafkaError.PRODUCER_FENCED: FencedWriter,
    KafkaError.INVALID_PRODUCER_EPOCH: FencedWriter,
    KafkaError.MSG_SIZE_TOO_LARGE: MessageTooLarge,
    KafkaError.RECORD_LIST_TOO_LARGE: MessageTooLarge,
    KafkaError.UNKNOWN_TOPIC_OR_PART: NoSuchTopic,
    KafkaError._UNKNOWN_TOPIC: NoSuchTopic,
    KafkaError._UNKNOWN_PARTITION: NoSuchTopic,
    KafkaError.TOPIC_EXCEPTION: NoSuchTopic,
    KafkaError._BAD_MSG: DamagedMessages,
    KafkaError._BAD_COMPRESSION: DamagedMessages,
    KafkaError._TRANSPORT: BrokerUnreachable,
    KafkaError._ALL_BROKERS_DOWN: BrokerUnreachable,
    KafkaError._TIMED_OUT: BrokerUnreachable,
    KafkaError._TIMED_OUT_QUEUE: BrokerUnreachable,
    KafkaError._MSG_TIMED_OUT: BrokerUnreachable,
    KafkaError._NOENT: BrokerUnreachable,
    KafkaError._RESOLVE: BrokerUnreachable,
    KafkaError._WAIT_COORD: BrokerUnreachable,
    KafkaError._WAIT_CACHE: BrokerUnreachable,
}

_RETRIABLE: Final = frozenset(
    [
        *(5, 6, 7, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56),
        *(70, 71, 72, 74, 75, 78, 80, 83, 84, 88, 89, 100, 103, 106),
    ]
)
"""Errors of brokers that the protocol calls retriable ("Error Codes" in Kafka's protocol guide).

librdkafka says `retriable` of transactions only. A broker that leads a partition again after a
standstill answers 74 to those that know its older epoch, for one.
"""


def translated(error: KafkaError | KafkaException, doing: str) -> BrokerError:
    """Return our error for one of confluent-kafka's.

    Args:
        error: Its error, or the exception that holds it.
        doing: What was being done, ``"asking for the ends of partitions"``.
    """
    inner: KafkaError = error.args[0] if isinstance(error, KafkaException) else error
    kind = _KINDS.get(inner.code())
    if kind is None and (inner.retriable() or inner.code() in _RETRIABLE):
        kind = BrokerUnreachable
    text = f"while {doing}: {inner.name()}: {inner.str()}"
    return BrokerError(text) if kind is None else kind(f"{text}; {_REMEDIES[kind]}")


def not_written(error: KafkaError | KafkaException, doing: str) -> BrokerError:
    """Return our error for a message that was not written, or a transaction that did not end."""
    ours = translated(error, doing)
    if type(ours) in (BrokerError, BrokerUnreachable):
        return MessagesNotWritten(str(ours))
    return ours
