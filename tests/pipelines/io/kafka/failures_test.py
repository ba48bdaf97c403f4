"""kafka-python's errors as ours: what another try may mend is told from what it cannot."""

from __future__ import annotations

import kafka.errors
import pytest

from tidemill.features.errors import BrokerError, BrokerUnreachable, FencedWriter, NotAuthorised
from tidemill.pipelines.io.kafka.kafka_python.failures import translated


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
