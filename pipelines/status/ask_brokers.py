"""Where the topics end, asked of their brokers at once, and for a bounded time.

A broker that does not answer, refuses us, or lacks the topic, costs that answer and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tidemill.features.errors import TidemillError
from tidemill.pipelines.config.kafka_section import KafkaTopic
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Ends, Partition
from tidemill.pipelines.io.kafka.reach import reach

WITHIN_S: Final = 6.0
"""How long all brokers have together, in seconds."""
_REACH_S: Final = 3.0


@dataclass(frozen=True)
class Answer:
    """What a broker says of a topic.

    Attributes:
        ends: Where each partition ends; None if it does not say.
        why: Why it does not say; None if it does.
    """

    ends: Mapping[int, Ends] | None
    why: str | None


def ask_brokers(topics: Mapping[str, KafkaTopic], within_s: float = WITHIN_S) -> dict[str, Answer]:
    """Ask where topics end.

    Args:
        topics: Source to its topic.
        within_s: How long to wait for all answers, in seconds.

    Returns:
        Source to the answer.
    """
    found: dict[str, Answer] = {}

    def ask(source: str, topic: KafkaTopic) -> None:
        try:
            found[source] = Answer(_ends(topic), None)
        except TidemillError as error:
            found[source] = Answer(None, str(error))

    threads = [
        threading.Thread(target=ask, args=one, daemon=True, name=f"tidemill-ask-{one[0]}")
        for one in topics.items()
    ]
    deadline_s = time.monotonic() + within_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline_s - time.monotonic(), 0))
    late = f"the broker has not answered within {within_s:g} s"
    return {source: found.get(source, Answer(None, late)) for source in topics}


def _ends(topic: KafkaTopic) -> dict[int, Ends]:
    connection = topic.connection
    reach(connection, reads=[topic.topic], within_s=_REACH_S)
    asker = choose_client(connection.client).asker(connection)
    try:
        numbers = asker.topics([topic.topic])[topic.topic].partitions
        ends = asker.ends([Partition(topic.topic, number) for number in numbers])
    finally:
        asker.close()
    return {place.partition: end for place, end in ends.items()}
