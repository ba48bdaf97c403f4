"""How to connect: addresses, files that do not fit, and passwords that are never shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certificates import Certificate
from tests.support.markdown import ROOT
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.io.kafka.choosing import choose_client
from tidemill.pipelines.io.kafka.connection import Connection, Mechanism, Sasl, Secret, Tls
from tidemill.pipelines.io.kafka.wire import tls_context

PASSWORD = "hunter2-s3cret"


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("host:9093", ("host", 9093)),
        ("host", ("host", 9092)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:9093", ("::1", 9093)),
        ("[::1]", ("::1", 9092)),
        ("::1", ("::1", 9092)),
    ],
)
def test_addresses(server: str, address: tuple[str, int]) -> None:
    assert Connection((server,)).addresses() == [address]


@pytest.mark.parametrize("server", ["", ":9092", "host:", "host:x", "kafka://host:1", "host:0"])
def test_what_is_no_address_is_refused(server: str) -> None:
    with pytest.raises(ConfigurationError, match=r"kafka\.servers: found"):
        Connection((server,))


def test_no_server_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="name at least one broker"):
        Connection(())


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    made = Certificate.made_in(tmp_path, "me")
    tls = Tls(made.cert, made.cert, made.key, PASSWORD)
    sasl = Sasl(Mechanism.PLAIN, "alice", PASSWORD)
    shown = Connection(("host:1",), tls, sasl)
    assert PASSWORD not in f"{shown} {shown!r} {Secret(PASSWORD)!r} { ({'p': Secret(PASSWORD)}) }"
    assert Secret(PASSWORD) == PASSWORD
    assert shown.protocol == "SASL_SSL"
    with pytest.raises(ConfigurationError) as caught:
        Sasl(Mechanism.PLAIN, "", PASSWORD)
    assert PASSWORD not in str(caught.value)


def test_files_that_are_missing_or_do_not_fit_are_named(tmp_path: Path) -> None:
    one, other = (Certificate.made_in(tmp_path, name) for name in ("one", "other"))
    with pytest.raises(ConfigurationError, match="name both certificate and key"):
        Tls(certificate=one.cert)
    with pytest.raises(ConfigurationError, match=r"kafka\.tls\.ca: there is no file"):
        Tls(ca=tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="belong together"):
        tls_context(Tls(certificate=one.cert, key=other.key))
    empty = tmp_path / "empty"
    empty.write_text("no certificate")
    with pytest.raises(ConfigurationError, match="no PEM file of certificates"):
        tls_context(Tls(ca=empty))


def test_clients_are_chosen_by_name() -> None:
    assert type(choose_client()).__name__ == "KafkaPython"
    with pytest.raises(ConfigurationError, match="did you mean 'confluent-kafka'"):
        choose_client("confluent_kafka")


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"install tidemill\[confluent\]"):
        choose_client("confluent-kafka")


def test_a_python_without_assertions_is_refused_and_not_the_port() -> None:
    code = "from tidemill.pipelines.io.kafka.choosing import choose_client; choose_client()"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "ConfigurationError: Python runs without assertions (-O, or" in done.stderr
