"""What a reader of committed messages gets of a project's topics."""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer, TopicPartition

from tests.support.live_project import LiveProject


def committed(project: LiveProject, name: str) -> list[Any]:
    """Read what a reader of committed messages gets of a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=project.broker.bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    try:
        topic = project.topics[name]
        places = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        ends = consumer.end_offsets(places)
        found: list[Any] = []
        while any(consumer.position(place) < ends[place] for place in places):
            for records in consumer.poll(timeout_ms=200).values():
                found += records
        return found
    finally:
        consumer.close()
