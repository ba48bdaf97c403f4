"""The libraries' errors as ours: what another try may mend is told from what it cannot."""

from __future__ import annotations

import kafka.errors
import pytest
from confluent_kafka import KafkaError as ConfluentError

from tidemill.features.errors import (
    BrokerError,
    BrokerUnreachable,
    FencedWriter,
    NoSuchTopic,
    NotAuthorised,
)
from tidemill.pipelines.io.kafka.confluent import failures as confluent
from tidemill.pipelines.io.kafka.kafka_python.failures import translated

RETRIABLE = {
    error.errno: error
    for error in vars(kafka.errors).values()
    if isinstance(error, type)
    and issubclass(error, kafka.errors.RetriableError)
    and (getattr(error, "errno", 0) or 0) > 0
}
# Of share groups, which librdkafka does not know.
SHARES = {122, 123}


@pytest.mark.parametrize(
    "error",
    [
        kafka.errors.UnknownBrokerIdError(-1),  # a partition without a leader, for now
        kafka.errors.NodeNotReadyError(1),
        kafka.errors.KafkaConnectionError("refused"),
        kafka.errors.KafkaTimeoutError("metadata"),
        kafka.errors.RequestTimedOutError(),
    ],
)
def test_a_broker_that_is_away_for_now_is_unreachable(error: Exception) -> None:
    found = translated(error, "asking for offsets")
    assert type(found) is BrokerUnreachable
    assert str(found).startswith("while asking for offsets: ")
    assert str(found).endswith("; try again")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (kafka.errors.TopicAuthorizationFailedError(), NotAuthorised),
        (kafka.errors.ProducerFencedError(), FencedWriter),
        (kafka.errors.IllegalStateError("no"), BrokerError),
    ],
)
def test_what_another_try_does_not_mend_is_said(error: Exception, kind: type[Exception]) -> None:
    assert type(translated(error, "writing")) is kind


@pytest.mark.parametrize("code", sorted(RETRIABLE.keys() - SHARES))
def test_libraries_agree_on_what_another_try_may_mend(code: int) -> None:
    found = confluent.translated(ConfluentError(code), "asking for offsets")
    assert type(found) is type(translated(RETRIABLE[code](), "asking for offsets"))
    assert isinstance(found, BrokerUnreachable | NoSuchTopic)


def test_a_leader_of_a_newer_epoch_is_asked_again() -> None:
    assert 74 in RETRIABLE
    found = confluent.translated(ConfluentError(ConfluentError.FENCED_LEADER_EPOCH), "asking")
    assert type(found) is BrokerUnreachable
