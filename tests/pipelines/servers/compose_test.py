"""The file for Docker asks for the servers that `tidemill up` starts.

Docker itself does not run here: the file is parsed, and compared with what the broker is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support.markdown import ROOT
from tidemill.pipelines.commands.up import KAFKA_PORT, REDIS_PORT
from tidemill.pipelines.servers.kafka_settings import COMMON, Protocol, broker_settings
from tidemill.pipelines.servers.locked_jars import KAFKA
from tidemill.pipelines.servers.redis_server import OPTIONS

# They hold addresses and folders, which differ inside a container.
OF_THE_PLACE = {"log.dirs", "listeners", "controller.quorum.voters"}
OF_THE_MACHINE = (
    broker_settings(Path("/data"), {Protocol.PLAINTEXT: KAFKA_PORT}, 9093).keys()
    - COMMON.keys()
    - OF_THE_PLACE
)


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text())
    return found["services"]  # type: ignore[no-any-return]


def variable(setting: str) -> str:
    """The environment variable from which the image of Kafka takes a setting."""
    return f"KAFKA_{setting.upper().replace('.', '_')}"


def test_the_broker_has_the_same_version_and_settings() -> None:
    kafka = services()["kafka"]
    (broker,) = (jar for jar in KAFKA.jars() if jar.artifact == "kafka_2.13")
    assert kafka["image"] == f"apache/kafka:{broker.version}"
    given = kafka["environment"]
    for name, value in COMMON.items():
        assert given[variable(name)] == value, name
    ours = broker_settings(Path("/data"), {Protocol.PLAINTEXT: KAFKA_PORT}, 9093)
    for name in ("advertised.listeners", "inter.broker.listener.name"):
        assert given[variable(name)] == ours[name]
    protocols = given[variable("listener.security.protocol.map")].split(",")
    assert protocols == ours["listener.security.protocol.map"].split(",")
    unknown = given.keys() - {variable(name) for name in ours}
    assert unknown == set()


def test_every_setting_of_the_broker_is_taken_over_or_of_the_machine() -> None:
    given = services()["kafka"]["environment"].keys()
    left_out = {name for name in OF_THE_MACHINE if variable(name) not in given}
    assert left_out == {
        "num.network.threads",
        "num.io.threads",
        "background.threads",
        "log.cleaner.dedupe.buffer.size",
        "broker.session.timeout.ms",
        "broker.heartbeat.interval.ms",
    }


def test_only_this_machine_reaches_the_same_ports_and_data_stay() -> None:
    for name, port in (("kafka", KAFKA_PORT), ("redis", REDIS_PORT)):
        service = services()[name]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        (volume,) = service["volumes"]
        kept = volume.partition(":")[2]
        assert kept == {"kafka": "/var/lib/kafka/data", "redis": "/data"}[name]
    assert services()["kafka"]["environment"][variable("log.dirs")] == "/var/lib/kafka/data"
    assert services()["redis"]["command"] == ["redis-server", *OPTIONS]
