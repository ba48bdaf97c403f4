"""The topics of a configuration: found without its project, made once, on their own broker."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient

from tests.support.kafka_broker import TestBroker
from tidemill.features.errors import BrokerUnreachable, ConfigurationError
from tidemill.pipelines.servers.project_topics import make_topics, named_topics

YAML = """
project: no_such_module:project
root: run
splits: {}
sources:
  orders: {files: [orders.csv], kafka: {bootstrap: &here "localhost:29092", topic: orders}}
  visits: {files: [visits.csv]}
  checkouts: {kafka: {bootstrap: "far.example:9092,far.example:9093", topic: checkouts}}
predictions: {kafka: {bootstrap: *here, topic: predictions}}
"""


def test_topics_are_found_in_every_section(tmp_path: Path) -> None:
    path = tmp_path / "tidemill.yaml"
    path.write_text(YAML)
    found = named_topics(path)
    assert [(one.name, one.where, one.local_port()) for one in found] == [
        ("orders", "sources.orders.kafka", 29092),
        ("checkouts", "sources.checkouts.kafka", None),
        ("predictions", "predictions.kafka", 29092),
    ]


def test_a_topic_without_a_broker_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "tidemill.yaml"
    path.write_text(
        YAML.replace('bootstrap: &here "localhost:29092", ', "").replace("*here", "h:1")
    )
    with pytest.raises(ConfigurationError, match=r"tidemill\.yaml:6: .*bootstrap"):
        named_topics(path)


def test_only_missing_topics_are_made(broker: TestBroker) -> None:
    there, new = broker.new_topic(3), f"topic-{secrets.token_hex(6)}"
    assert make_topics(broker.bootstrap, [there, new, new], partitions=4) == [new]
    assert make_topics(broker.bootstrap, [there, new]) == []
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    described = {one["name"]: len(one["partitions"]) for one in admin.describe_topics([there, new])}
    admin.close()
    assert described == {there: 3, new: 4}


def test_a_topic_that_no_broker_can_have_is_explained(broker: TestBroker) -> None:
    with pytest.raises(BrokerUnreachable, match="topics cannot be made"):
        make_topics(broker.bootstrap, ["no topic has a blank"])
