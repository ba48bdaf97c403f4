"""Committing the offsets up to which a stream has kept rows, for tools that show lag.

A stream begins where its own records say (`pipelines.io.live.live_log`), and never reads committed
offsets. They are for others: lag exporters, dashboards of clusters, ``kafka-consumer-groups.sh``.
The group is ``tidemill-ID``, with the id of the root. A thread commits, the newest offsets only, so
a broker that is away or refuses keeps nothing waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from tidemill.features.errors import BrokerError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.kafka_section import KafkaTopic
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.client import Partition
from tidemill.pipelines.run.holder import root_id
from tidemill.pipelines.run.newest import Newest

_CLOSE_S: Final = 5.0

_log = logging.getLogger(__name__)


def group_of(config: Configuration) -> str:
    """Return the name of the consumer group with the offsets of a root's streams."""
    return f"tidemill-{root_id(config.root)}"


class CommittedOffsets:
    """Commits offsets in a thread.

    Args:
        topics: Source to its topic.
        group: The consumer group.
    """

    def __init__(self, topics: Mapping[str, KafkaTopic], group: str) -> None:
        self._topics, self._group = topics, group
        self._failed: dict[str, str] = {}
        self._newest = Newest(self._commit_all, "commit-offsets", _CLOSE_S)

    def note(self, offsets: Mapping[str, Sequence[int]]) -> None:
        """Let offsets be committed soon, unless newer ones are noted before.

        Args:
            offsets: Source to the offset of the next message of each partition.
        """
        self._newest.note(offsets)

    def close(self) -> None:
        """Commit what is noted, if that does not take long, and end the thread."""
        self._newest.close()

    def _commit_all(self, offsets: Mapping[str, Sequence[int]]) -> None:
        for source, topic in self._topics.items():
            if source in offsets:
                self._commit(source, topic, offsets[source])

    def _commit(self, source: str, topic: KafkaTopic, offsets: Sequence[int]) -> None:
        try:
            asker = choose_client(topic.connection.client).asker(topic.connection)
            try:
                asker.commit(
                    self._group,
                    {Partition(topic.topic, number): at for number, at in enumerate(offsets)},
                )
            finally:
                asker.close()
        except BrokerError as error:
            # Nothing depends on it. It is said once, until it is another reason.
            if self._failed.get(source) != type(error).__name__:
                self._failed[source] = type(error).__name__
                _log.warning(
                    "offsets of %r are not committed to the group %r, so tools that show lag do "
                    "not see them; the stream goes on: %s",
                    source,
                    self._group,
                    error,
                )
            return
        self._failed.pop(source, None)


@contextmanager
def committing(config: Configuration) -> Iterator[CommittedOffsets]:
    """Commit offsets of all live sources while the block runs."""
    topics = {name: one.kafka for name, one in config.sources.items() if one.kafka is not None}
    offsets = CommittedOffsets(topics, group_of(config))
    try:
        yield offsets
    finally:
        offsets.close()
