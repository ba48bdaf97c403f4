"""The settings of a broker, as Java reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.pipelines.servers.kafka_settings import (
    Mechanism,
    Protocol,
    User,
    broker_settings,
    properties,
)


def test_values_are_written_as_java_reads_them() -> None:
    written = properties({"a": " led by a space", "b": "back\\slash\nline", "c": "é😀"})
    assert written == "a=\\ led by a space\nb=back\\\\slash\\nline\nc=\\u00e9\\ud83d\\ude00\n"


@pytest.mark.parametrize("bad", ["", 'a"b', "a,b", "a]b", "a;b", "a=b", "a\\b", "a\nb"])
def test_a_user_that_kafka_cannot_write_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="must not be empty or hold"):
        User("alice", bad, Mechanism.PLAIN)
    with pytest.raises(ValueError, match="must not be empty or hold"):
        User(bad, "secret", Mechanism.SCRAM_SHA_256)


def test_only_plain_users_stand_in_the_settings_and_only_of_sasl() -> None:
    users = (
        User("alice", "plain-secret", Mechanism.PLAIN),
        User("bob", "scram-secret", Mechanism.SCRAM_SHA_512),
    )
    ports = {Protocol.PLAINTEXT: 1, Protocol.SASL_PLAINTEXT: 2}
    text = properties(broker_settings(Path("/data"), ports, 3, users))
    assert 'user_alice="plain-secret"' in text
    assert "scram-secret" not in text
    assert "plain-secret" not in properties(
        broker_settings(Path("/data"), {Protocol.PLAINTEXT: 1}, 3, users)
    )


def test_every_listener_is_on_this_machine_only() -> None:
    ports = {protocol: number for number, protocol in enumerate(Protocol, 9092)}
    settings = broker_settings(Path("/data"), ports, 9_000, key_store=Path("/key.pem"))
    places = settings["listeners"].split(",") + settings["advertised.listeners"].split(",")
    assert all("//127.0.0.1:" in place for place in places)
    assert len(places) == 5 + 4
