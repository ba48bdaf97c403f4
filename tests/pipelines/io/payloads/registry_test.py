"""The registry's client against a server that answers as Confluent's does."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Certificate
from tests.support.schema_registry import SchemaRegistry, schema_registry
from tidemill.features.errors import ConfigurationError, RegistryRefused, RegistryUnavailable
from tidemill.pipelines.io.payloads.registry import RegisteredSchema, Registry, RegistryPlace


@pytest.fixture
def server() -> Iterator[SchemaRegistry]:
    with schema_registry() as registry:
        yield registry


def client(url: str, **options: Any) -> Registry:
    return Registry(RegistryPlace(url, **{"pause_s": 0.001, "timeout_s": 5.0, **options}))


def test_a_schema_is_asked_for_once(server: SchemaRegistry) -> None:
    server.register(7, '"int"')
    registry = client(server.url + "/")
    assert registry.schema(7) == registry.schema(7) == RegisteredSchema("AVRO", '"int"', {})
    assert server.paths == ["/schemas/ids/7"]


def test_references_are_read_by_subject_and_version(server: SchemaRegistry) -> None:
    reference = {"name": "a.B", "subject": "a b", "version": 2}
    server.register(1, '"string"', "PROTOBUF", subject=("a%20b", 2))
    server.register(2, '"a.B"', "PROTOBUF", [reference])
    schema = client(server.url).schema(2)
    assert schema is not None
    assert schema.kind == "PROTOBUF"
    assert schema.references == {"a.B": RegisteredSchema("PROTOBUF", '"string"', {})}
    assert server.paths == ["/schemas/ids/2", "/subjects/a%20b/versions/2"]


def test_an_unknown_id_is_none_and_asked_for_again(server: SchemaRegistry) -> None:
    registry = client(server.url)
    assert registry.schema(9) is None
    server.register(9, '"int"', references=[{"name": "x", "subject": "gone", "version": 1}])
    assert registry.schema(9) is None
    server.register(9, '"int"')
    assert registry.schema(9) is not None


def test_schemas_that_refer_to_each_other_without_end_are_refused(server: SchemaRegistry) -> None:
    reference = [{"name": "a", "subject": "a", "version": 1}]
    server.register(1, '"int"', references=reference, subject=("a", 1))
    with pytest.raises(RegistryRefused, match="more than 32 deep"):
        client(server.url).schema(1)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_registry_that_cannot_answer_now_is_asked_again(
    server: SchemaRegistry, status: int
) -> None:
    server.register(7, '"int"')
    server.failures = [status] * 3
    assert client(server.url).schema(7) is not None
    assert len(server.paths) == 4
    server.failures = [status] * 4
    with pytest.raises(RegistryUnavailable, match=f"/schemas/ids/8: answered {status}"):
        client(server.url).schema(8)
    assert len(server.paths) == 8


def test_an_answer_that_does_not_come_has_a_time_limit(server: SchemaRegistry) -> None:
    server.register(7, '"int"')
    server.delay_s = 0.5
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        client(server.url, timeout_s=0.05, attempts=2).schema(7)
    assert len(server.paths) == 2


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(RegistryUnavailable, match="is it up"):
            client(url, attempts=2).schema(7)


def test_credentials_are_sent_and_never_shown(server: SchemaRegistry) -> None:
    server.register(7, '"int"')
    server.user = "reader:se:cret"
    with pytest.raises(RegistryRefused, match="check the user and the password") as refused:
        client(server.url, user="reader", password="wrong").schema(7)
    assert "wrong" not in str(refused.value)
    with pytest.raises(RegistryRefused, match="401"):
        client(server.url).schema(7)
    registry = client(server.url, user="reader", password="se:cret")
    assert registry.schema(7) is not None
    assert "se:cret" not in repr(registry.place)


def test_a_redirection_is_refused(server: SchemaRegistry) -> None:
    server.failures = [302]
    with pytest.raises(RegistryRefused, match="302"):
        client(server.url, user="u", password="p").schema(7)
    assert server.paths == ["/schemas/ids/7"]


@pytest.mark.parametrize("path", ["", "/wrong"])
def test_what_is_no_registry_is_refused(server: SchemaRegistry, path: str) -> None:
    server.answers["/schemas/ids/7"] = b"<html></html>"
    with pytest.raises(RegistryRefused):
        client(server.url + path).schema(7)
    answers: list[Any] = [[], {}, {"schema": 5}, {"schema": "", "references": 5}]
    for answer in answers:
        server.answers["/schemas/ids/7"] = answer
        with pytest.raises(RegistryRefused, match="found"):
            client(server.url).schema(7)


def test_tls_needs_a_trusted_certificate(tmp_path: Path) -> None:
    certificate = Certificate.made_in(tmp_path, "registry")
    with schema_registry(certificate) as server:
        server.register(7, '"int"')
        assert client(server.url, ca=certificate.cert).schema(7) is not None
        with pytest.raises(RegistryRefused, match="certificate is not trusted"):
            client(server.url).schema(7)
        with pytest.raises(ConfigurationError, match="cannot read the certificates"):
            client(server.url, ca=tmp_path / "none").schema(7)


@pytest.mark.parametrize("url", ["registry:8081", "ftp://registry", "http://", "file:///etc"])
def test_an_address_is_one_of_http(url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected http://"):
        RegistryPlace(url)


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigurationError, match="give them apart") as refused:
        RegistryPlace("http://user:secret@registry")
    assert "secret" not in str(refused.value)


def test_a_client_can_be_pickled(server: SchemaRegistry) -> None:
    server.register(7, '"int"')
    registry = client(server.url)
    registry.schema(7)
    again = pickle.loads(pickle.dumps(registry))
    assert again.place == registry.place
    assert again.schema(7) is not None
