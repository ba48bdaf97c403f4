"""kafka-python's errors, as ours."""

from __future__ import annotations

from typing import Final

import kafka.errors

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
TOO_LARGE: Final = "the broker does not accept so large a message"

_KINDS: Final = (
    (WrongCredentials, kafka.errors.SaslAuthenticationFailedError, "correct the user or password"),
    (NotAuthorised, kafka.errors.AuthorizationError, "grant it to the user"),
    (FencedWriter, kafka.errors.ProducerFencedError, FENCED),
    (FencedWriter, kafka.errors.InvalidProducerEpochError, FENCED),
    (MessageTooLarge, kafka.errors.MessageSizeTooLargeError, TOO_LARGE),
    (MessageTooLarge, kafka.errors.RecordListTooLargeError, TOO_LARGE),
    (NoSuchTopic, kafka.errors.UnknownTopicOrPartitionError, "create it, or correct its name"),
    (NoSuchTopic, kafka.errors.InvalidTopicError, "correct its name"),
    (DamagedMessages, kafka.errors.CorruptRecordError, "restore the topic from a replica"),
    (DamagedMessages, kafka.errors.UnsupportedCodecError, "install the compression's package"),
    (BrokerUnreachable, kafka.errors.RetriableError, "try again"),
    (BrokerUnreachable, kafka.errors.KafkaTimeoutError, "try again"),
    # A partition has no leader now, or the cluster does not name its broker yet.
    (BrokerUnreachable, kafka.errors.UnknownBrokerIdError, "try again"),
)
_NAMED: Final[tuple[tuple[str, type[BrokerError], str], ...]] = (
    ("AuthorizationFailedError", NotAuthorised, "grant it to the user"),
    ("ProducerFencedError", FencedWriter, FENCED),
    ("InvalidProducerEpochError", FencedWriter, FENCED),
)
"""What the producer only names in the text of another error."""


def translated(error: Exception, doing: str) -> BrokerError:
    """Return our error for one of kafka-python's.

    Args:
        error: Its error.
        doing: What was being done, ``"asking for the ends of partitions"``.
    """
    for ours, theirs, remedy in _KINDS:
        if isinstance(error, theirs):
            return ours(f"while {doing}: {_said(error)}; {remedy}")
    for name, kind, remedy in _NAMED:
        if name in str(error):
            return kind(f"while {doing}: {error}; {remedy}")
    return BrokerError(f"while {doing}: {_said(error)}")


def not_written(error: Exception, doing: str) -> BrokerError:
    """Return our error for a message that was not written, or a transaction that did not end."""
    ours = translated(error, doing)
    if type(ours) in (BrokerError, BrokerUnreachable):
        return MessagesNotWritten(str(ours))
    return ours


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if error.args else type(error).__name__
