"""Reaching a cluster: every way to fail has an error of its own, within the time that it has."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from tests.pipelines.io.kafka.cluster import administrator, connection_to, new_topic
from tests.support.certificates import Certificate
from tests.support.kafka_broker import ALICE, BOB, CAROL, TestBroker
from tests.support.tls_proxy import tls_proxy
from tidemill.features.errors import (
    BrokerUnreachable,
    ClientCertificateNeeded,
    MechanismNotOffered,
    NoSuchTopic,
    NotAuthorised,
    NotKafka,
    UnknownBrokerHost,
    UntrustedCertificate,
    WrongCredentials,
)
from tidemill.pipelines.io.kafka.client import Client, ProducerSettings
from tidemill.pipelines.io.kafka.connection import Connection, Mechanism, Sasl, Tls
from tidemill.pipelines.io.kafka.reach import WITHIN_S, reach
from tidemill.pipelines.io.kafka.reader import Reader
from tidemill.pipelines.io.kafka.writer import Writer
from tidemill.pipelines.servers.kafka_settings import Mechanism as ServerMechanism
from tidemill.pipelines.servers.kafka_settings import Protocol, User

HOST = "127.0.0.1"
NOTHING = User("nothing", "n0thing-s3cret", ServerMechanism.PLAIN)
LISTENERS = [
    (Protocol.PLAINTEXT, None),
    (Protocol.SSL, None),
    (Protocol.SASL_PLAINTEXT, ALICE),
    (Protocol.SASL_PLAINTEXT, BOB),
    (Protocol.SASL_PLAINTEXT, CAROL),
    (Protocol.SASL_SSL, ALICE),
    (Protocol.SASL_SSL, CAROL),
]


class StrictBroker(TestBroker):
    """It asks clients for certificates, lets only some users in, and misnames one listener."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS;User:alice",
                "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
                    "org.apache.kafka.common.security.plain.PlainLoginModule required "
                    f'user_{NOTHING.name}="{NOTHING.password}";'
                ),
                "listener.name.ssl.ssl.client.auth": "required",
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(folder / "broker.crt"),
            },
        )
        named = [f"{name.value}://{self.address(name)}" for name in Protocol]
        named[named.index(f"SASL_SSL://{self.address(Protocol.SASL_SSL)}")] = (
            "SASL_SSL://127.0.0.1:1"
        )
        self._settings["advertised.listeners"] = ",".join(named)


@pytest.fixture(scope="module")
def strict_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictBroker]:
    """A broker that refuses more than `broker` does."""
    started = StrictBroker(tmp_path_factory.mktemp("strict"))
    try:
        started.start()
        yield started
    finally:
        started.close()


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Listen on a port; with an answer, give it to each request, else never answer."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    taken, _ = server.accept()
                except OSError:
                    return
                with taken:
                    taken.settimeout(5)
                    taken.recv(1_000)
                    taken.sendall(answer or b"")

        if answer is not None:
            Thread(target=serve, daemon=True).start()
        yield f"{HOST}:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def tls_in_front(broker: TestBroker, certificate: Certificate) -> Iterator[str]:
    """Speak TLS with this certificate in front of the broker's listener without TLS."""
    with closing(socket.create_server((HOST, 0))) as reserved:
        address = reserved.getsockname()[:2]
    server = HOST, broker.ports[Protocol.PLAINTEXT]
    proxy = tls_proxy(address, server, certificate, asks_clients=False)
    proxy.start()
    try:
        yield f"{HOST}:{address[1]}"
    finally:
        proxy.stop()


def expired(folder: Path) -> Certificate:
    """Make a certificate that was good until yesterday."""
    made = Certificate.made_in(folder, "expired")
    old = x509.load_pem_x509_certificate(made.cert.read_bytes())
    key = serialization.load_pem_private_key(made.key.read_bytes(), None)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        old.issuer,
        old.subject,
        old.public_key(),
        old.serial_number,
        now - timedelta(days=3),
        now - timedelta(days=1),
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    made.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return made


def write(writer: Writer, topic: str) -> None:
    """Write a message; when this returns, it is written."""
    writer.send(topic, 0, None, b"v")
    writer.flush()


@pytest.mark.parametrize(("protocol", "user"), LISTENERS)
def test_every_listener_is_reached_and_used(
    broker: TestBroker, client: Client, protocol: Protocol, user: User | None
) -> None:
    topic = new_topic(broker)
    connection = connection_to(broker, protocol, user)
    reach(connection, reads=[topic], writes=[topic])
    with Writer(client, connection) as writer, Reader(client, connection) as reader:
        write(writer, topic)
        assert reader.partitions(topic) == (0,)


def test_a_host_without_an_address() -> None:
    with pytest.raises(UnknownBrokerHost, match=r"nowhere\.invalid:9092: the name"):
        reach(Connection(("nowhere.invalid",)))


def test_a_port_on_which_nobody_listens() -> None:
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1: the connection is refused"):
        reach(Connection((f"{HOST}:1",)))


def test_a_port_on_which_nobody_answers_in_time() -> None:
    with listening(None) as server:
        for tls in (None, Tls()):
            began_s = time.monotonic()
            with pytest.raises(BrokerUnreachable, match="nobody answers in time"):
                reach(Connection((server,), tls), within_s=0.5)
            assert time.monotonic() - began_s < WITHIN_S


def test_a_paused_broker_does_not_answer_in_time(broker: TestBroker) -> None:
    broker.pause()
    try:
        with pytest.raises(BrokerUnreachable, match="nobody answers in time"):
            reach(connection_to(broker), within_s=0.5)
    finally:
        broker.resume()
    reach(connection_to(broker))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0\0\0\4abcd"])
def test_what_does_not_speak_kafka(answer: bytes) -> None:
    with listening(answer) as server, pytest.raises(NotKafka, match="correct the port"):
        reach(Connection((server,)))


def test_plain_text_on_a_port_that_speaks_tls(broker: TestBroker) -> None:
    server = (broker.address(Protocol.SSL),)
    with pytest.raises(NotKafka, match="this port speaks TLS, and the connection is in plain text"):
        reach(Connection(server))


def test_tls_on_a_port_that_speaks_plain_text(broker: TestBroker) -> None:
    server = (broker.bootstrap,)
    with pytest.raises(NotKafka, match="does not speak TLS: leave out tls"):
        reach(Connection(server, Tls()))


def test_a_certificate_of_an_unknown_authority(broker: TestBroker, tmp_path: Path) -> None:
    other = Certificate.made_in(tmp_path, "other")
    for ca in (None, other.cert):
        server = (broker.address(Protocol.SSL),)
        with pytest.raises(UntrustedCertificate, match=r"self-signed.*give tls\.ca"):
            reach(Connection(server, Tls(ca)))


def test_a_certificate_of_another_host(broker: TestBroker, tmp_path: Path) -> None:
    made = Certificate.made_in(tmp_path, "elsewhere", ("elsewhere.example",))
    with (
        tls_in_front(broker, made) as server,
        pytest.raises(UntrustedCertificate, match="connect by a name that it is for"),
    ):
        reach(Connection((server,), Tls(made.cert)))


def test_a_certificate_that_is_expired(broker: TestBroker, tmp_path: Path) -> None:
    made = expired(tmp_path)
    with (
        tls_in_front(broker, made) as server,
        pytest.raises(UntrustedCertificate, match="expired; renew it at the broker"),
    ):
        reach(Connection((server,), Tls(made.cert)))


def test_a_broker_that_asks_for_a_certificate(strict_broker: StrictBroker, tmp_path: Path) -> None:
    server = (strict_broker.address(Protocol.SSL),)
    ours = strict_broker.certificate
    with pytest.raises(ClientCertificateNeeded, match="asks for a certificate of the client's"):
        reach(Connection(server, Tls(ours.cert)))
    other = Certificate.made_in(tmp_path, "other")
    with pytest.raises(ClientCertificateNeeded, match=r"does not accept the certificate .*other"):
        reach(Connection(server, Tls(ours.cert, other.cert, other.key)))


def test_a_certificate_is_shown_by_each_client(strict_broker: StrictBroker, client: Client) -> None:
    ours = strict_broker.certificate
    key = serialization.load_pem_private_key(ours.key.read_bytes(), None)
    locked = strict_broker.folder / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"key-s3cret"),
        )
    )
    server = (strict_broker.address(Protocol.SSL),)
    connection = Connection(server, Tls(ours.cert, ours.cert, locked, "key-s3cret"))
    # Its name, CN=broker, is a user without any right.
    with pytest.raises(NotAuthorised):
        reach(connection, reads=["anything"])
    with Reader(client, connection) as reader, pytest.raises(NotAuthorised):
        reader.partitions("anything")


def test_a_mechanism_that_is_not_offered(broker: TestBroker) -> None:
    server = (broker.bootstrap,)
    with pytest.raises(MechanismNotOffered, match="offers no login on this port"):
        reach(Connection(server, sasl=Sasl(Mechanism.PLAIN, "alice", "x")))


def test_a_mechanism_that_the_listener_lacks(strict_broker: StrictBroker) -> None:
    with pytest.raises(MechanismNotOffered, match="offers PLAIN"):
        reach(
            Connection(
                (strict_broker.address(Protocol.SASL_PLAINTEXT),),
                sasl=Sasl(Mechanism.SCRAM_SHA_512, CAROL.name, CAROL.password),
            )
        )


@pytest.mark.parametrize("user", [ALICE, BOB, CAROL], ids=lambda user: user.mechanism.value)
@pytest.mark.parametrize("protocol", [Protocol.SASL_PLAINTEXT, Protocol.SASL_SSL])
def test_a_wrong_password_or_user(broker: TestBroker, user: User, protocol: Protocol) -> None:
    for wrong in (
        User(user.name, "wr0ng-password", user.mechanism),
        User("nobody", user.password, user.mechanism),
    ):
        with pytest.raises(WrongCredentials, match=f"refuses the user '{wrong.name}'") as caught:
            reach(connection_to(broker, protocol, wrong))
        assert wrong.password not in str(caught.value)


def test_a_port_that_wants_a_login(broker: TestBroker) -> None:
    server = (broker.address(Protocol.SASL_PLAINTEXT),)
    with pytest.raises(WrongCredentials, match="a client that did not log in"):
        reach(Connection(server))


def test_a_topic_that_is_missing(broker: TestBroker) -> None:
    topic = new_topic(broker)
    for reads, writes in (([topic, "nowhere"], []), ([topic], ["nowhere"]), (["no/name"], [])):
        with pytest.raises(NoSuchTopic, match="there is no topic 'no"):
            reach(connection_to(broker), reads, writes)


def test_a_topic_that_the_user_may_not_use(strict_broker: StrictBroker, client: Client) -> None:
    topic = new_topic(strict_broker)
    connection = connection_to(strict_broker, Protocol.SASL_PLAINTEXT, NOTHING)
    with pytest.raises(NotAuthorised, match=f"the user 'nothing' may not see the topic '{topic}'"):
        reach(connection, reads=[topic])
    with administrator(strict_broker) as admin:
        admin.create_acls(
            [
                ACL(
                    "User:nothing",
                    "*",
                    ACLOperation.READ,
                    ACLPermissionType.ALLOW,
                    ResourcePattern(ResourceType.TOPIC, topic),
                )
            ]
        )
    deadline_s = time.monotonic() + 60
    while True:
        try:
            reach(connection, reads=[topic])
            break
        except NotAuthorised:
            assert time.monotonic() < deadline_s
    with pytest.raises(NotAuthorised, match=f"may not write the topic '{topic}'; grant WRITE"):
        reach(connection, reads=[topic], writes=[topic])
    settings = ProducerSettings(give_up_s=10)
    with Writer(client, connection, settings) as writer, pytest.raises(NotAuthorised):
        write(writer, topic)


def test_a_cluster_that_names_addresses_out_of_reach(strict_broker: StrictBroker) -> None:
    with pytest.raises(
        BrokerUnreachable, match=r"127\.0\.0\.1:1: .* correct its advertised\.listeners"
    ):
        reach(connection_to(strict_broker, Protocol.SASL_SSL, ALICE))


def test_one_of_several_servers_is_enough(broker: TestBroker) -> None:
    with listening(None) as silent:
        reach(Connection((f"{HOST}:1", "nowhere.invalid", silent, broker.bootstrap)))
        with pytest.raises(BrokerUnreachable, match=r"127.0.0.1:1: .*; and .*nobody answers"):
            reach(Connection((f"{HOST}:1", silent)), within_s=1.0)
    # A refusal says more than a broker that is away.
    with pytest.raises(NotKafka, match=r"speaks TLS.*; and 127.0.0.1:1"):
        reach(Connection((f"{HOST}:1", broker.address(Protocol.SSL))))


def test_a_password_is_in_no_log(
    broker: TestBroker, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    by_c_library = type(client).__name__ == "ConfluentKafka"
    connection = connection_to(broker, Protocol.SASL_PLAINTEXT, ALICE)
    with Reader(client, connection) as reader:
        reader.ends()
    Writer(client, connection).close()
    shown = "\n".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
    assert "kafka.net" in " ".join(record.name for record in caplog.records) or by_c_library
    assert ALICE.password not in shown
