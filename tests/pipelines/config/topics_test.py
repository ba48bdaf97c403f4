"""Sources with topics in the YAML file; errors name file, line, key and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidemill.features.contract import SECOND
from tidemill.features.errors import ConfigurationError, InputError
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.config.kafka_section import KafkaTopic
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.io.kafka.connection import Mechanism
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream

PROJECT = """
from tidemill import Entity, EventStream, FeatureView, Project, Request, count

columns = {"id": "string", "at": "timestamp", "customer": "string", "sent_at": "timestamp"}
orders = EventStream("orders", columns, "at", "id", transport=["sent_at"])
bare = EventStream("bare", columns, "at", "id")
asked = Request("asked", columns, "at", "id")
views = [
    FeatureView(
        f"by_{one.name}", Entity("customer"), one, "1h", {f"{one.name}_1d": count(over="1d")}
    )
    for one in (orders, bare)
]
project = Project("live_shop", asked, views)
"""

YAML = """\
project: live_project:project
root: ./run
sources:
  orders:
    files: [orders.csv]
    received: sent_at
    kafka:
      bootstrap: "localhost:9092, [::1]:9093"
      topic: orders
  asked:
    received: sent_at
    kafka: {bootstrap: "localhost:9092", topic: asked}
  bare: {files: [bare.csv]}
splits: {train_until: 2026-02-01T00:00:00Z, evaluate_until: 2026-02-15T00:00:00Z}
"""

TOPIC = "      topic: orders\n"
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def same_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*replacements: tuple[str, str]) -> Path:
        text = YAML
        for old, new in replacements:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / "live_project.py").write_text(PROJECT)
        path = tmp_path / "tidemill.yaml"
        path.write_text(text)
        return path

    return write


def failure(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return str(caught.value)


def orders(found: Configuration) -> tuple[Source, KafkaTopic]:
    source = found.sources["orders"]
    assert source.kafka is not None
    return source, source.kafka


@pytest.mark.parametrize("section", ["predictions", "rejected"])
def test_a_stream_does_not_write_to_a_topic_that_it_reads(section: str, write: Write) -> None:
    path = write()
    text = path.read_text()
    sink = f"{section}: {{{{kafka: {{{{bootstrap: '{{}}', topic: {{}}}}}}}}}}\n"
    path.write_text(text + sink.format("other:9092,localhost:9092", "orders"))
    assert f"{section}: 'orders' is the topic of the source 'orders'" in failure(path)
    # Another topic of these brokers, and the topic of that name at others, are what they seem.
    for bootstrap, topic in (("localhost:9092", "answers"), ("other:9092", "orders")):
        path.write_text(text + sink.format(bootstrap, topic))
        load(path)


def test_a_stream_from_topics_has_no_speed(write: Write) -> None:
    path = write()
    path.write_text(path.read_text() + "stream: {speed: 2}\n")
    assert "stream.speed: a stream from topics has no speed" in failure(path)
    config = load(write())
    with pytest.raises(InputError, match="no speed: it reads what comes; omit --speed"):
        stream(config, QuietProgress(), speed=2.0)


def test_avro_without_a_schema_is_refused(write: Write) -> None:
    said = failure(write((TOPIC, f"{TOPIC}      format: avro\n")))
    assert "messages of the format 'avro' need a 'schema' or a 'registry'" in said


def test_a_source_may_go_on_in_a_topic_and_needs_no_files(write: Write, tmp_path: Path) -> None:
    found = load(write())
    assert found.is_live
    source, topic = orders(found)
    assert source.files == (str(tmp_path / "orders.csv"),)
    assert topic == KafkaTopic(bootstrap=("localhost:9092", "[::1]:9093"), topic="orders")
    assert (topic.format, topic.start, topic.clock, topic.quiet_us) == (
        None, "handoff", "wall", 2 * SECOND
    )  # fmt: skip
    assert topic.connection.sasl is None
    assert topic.connection.tls is None
    assert found.sources["asked"].files == ()
    assert found.sources["asked"].find_files() == []
    assert [name for name, one in found.sources.items() if one.is_live] == ["orders", "asked"]


def test_a_topic_may_say_everything(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = """\
      format: json
      columns: {customer: key, id: "header:order"}
      tombstones: ignore
      start: 2026-02-14T00:00:00Z
      clock: messages
      quiet: 500ms
      tls: {ca: ca.pem, certificate: me.pem, key: me.key}
      username: tidemill
      password_env: TOPIC_PASSWORD
      mechanism: PLAIN
      client: confluent-kafka
"""
    for name in ("ca.pem", "me.pem", "me.key"):
        (tmp_path / name).touch()
    _, topic = orders(load(write((TOPIC, TOPIC + more))))
    assert topic.columns == {"customer": "key", "id": "header:order"}
    assert (topic.format, topic.tombstones, topic.clock) == ("json", "ignore", "messages")
    assert topic.quiet_us == SECOND // 2
    assert topic.start == 1_771_027_200 * SECOND
    assert topic.tls is not None
    assert topic.tls.ca == tmp_path / "ca.pem"
    with pytest.raises(ConfigurationError, match=r"'TOPIC_PASSWORD' is not set.*'tidemill'"):
        _ = topic.connection
    monkeypatch.setenv("TOPIC_PASSWORD", "secret")
    sasl = topic.connection.sasl
    assert sasl is not None
    assert (sasl.mechanism, sasl.user, sasl.password) == (Mechanism.PLAIN, "tidemill", "secret")
    assert topic.connection.client == "confluent-kafka"


def test_a_password_may_be_in_a_file(write: Write, tmp_path: Path) -> None:
    more = "      username: me\n      password_file: secret.txt\n"
    _, topic = orders(load(write((TOPIC, TOPIC + more))))
    with pytest.raises(
        ConfigurationError, match=r"password of user 'me' cannot be read.*secret\.txt"
    ):
        _ = topic.connection
    (tmp_path / "secret.txt").write_text("se cret \n")
    sasl = topic.connection.sasl
    assert sasl is not None
    assert (sasl.password, sasl.mechanism) == ("se cret ", Mechanism.SCRAM_SHA_512)


@pytest.mark.parametrize("start", ["earliest", "latest", "handoff"])
def test_reading_may_begin_at_a_named_place(write: Write, start: str) -> None:
    _, topic = orders(load(write((TOPIC, f"{TOPIC}      start: {start}\n"))))
    assert topic.start == start


@pytest.mark.parametrize(("text", "is_used"), [("true", True), ("false", False)])
def test_tls_may_be_asked_for_without_files(write: Write, text: str, is_used: bool) -> None:
    _, topic = orders(load(write((TOPIC, f"{TOPIC}      tls: {text}\n"))))
    assert (topic.tls is not None) is is_used


@pytest.mark.parametrize(
    ("lines", "line", "key", "says"),
    [
        ("topics: x", 10, "", "unknown key 'topics'; did you mean 'topic'?"),
        ("format: jsn", 10, "format", "found 'jsn', expected one of json"),
        ("clock: walls", 10, "clock", "found 'walls', expected one of wall, messages"),
        ("quiet: 0s", 10, "quiet", "found 0s, expected a duration above zero"),
        ("quiet: soon", 10, "quiet", "soon"),
        ("start: newest", 10, "start", "expected a date and time with its offset"),
        ("start: 2026-02-01T00:00:00", 10, "start", "expected a date and time with its offset"),
        ("start: handof", 10, "start", "such as 2013-10-01T00:00:00Z; or handoff, earliest or"),
        ("schema: a.avsc", 10, "schema", "of the format 'json' have none; remove the key, or name"),
        ("message: shop.Order", 10, "message", "name their format, such as protobuf"),
        ("frame: none", 10, "frame", "name their format, such as avro"),
        ("registry: {url: 'http://r'}", 10, "registry", "format 'json' have none; remove the key"),
        ("format: avro\n      message: a", 11, "message", "of the format 'avro' have none"),
        (
            "format: avro\n      registry: {url: here}",
            11,
            "registry.url",
            "found the address 'here', expected http://HOST:PORT",
        ),
        ("tombstones: keep", 10, "tombstones", "found 'keep', expected one of reject, ignore"),
        ("columns: {custommer: key}", 10, "columns.custommer", "has no column 'custommer'; did"),
        ("columns: [key]", 10, "columns", "found a list, expected"),
        ("columns: {customer: 1}", 10, "columns.customer", "found a number ('1'), expected a text"),
        ("tls: maybe", 10, "tls", "found a text ('maybe'), expected"),
        ("tls: {cert: a}", 10, "tls", "unknown key 'cert'"),
        ("tls: {certificate: a}", 10, "tls", "its key go together; give both or none"),
        ("username: me", 10, "username", "needs password_env or password_file too"),
        ("password_env: A", 10, "password_env", "needs username too"),
        ("mechanism: PLAIN", 10, "mechanism", "needs username too"),
        ("client: librdkafka", 10, "client", "found 'librdkafka', expected one of kafka-python"),
        ("mechanism: GSSAPI", 10, "mechanism", "found 'GSSAPI', expected one of PLAIN, SCRAM"),
        (
            "username: me\n      password_env: A\n      password_file: b",
            12,
            "password_file",
            "give password_env or password_file, not both",
        ),
    ],
)
def test_a_mistake_in_a_topic_names_its_place(
    write: Write, lines: str, line: int, key: str, says: str
) -> None:
    path = write((TOPIC, f"{TOPIC}      {lines}\n"))
    message = failure(path)
    place = "sources.orders.kafka" + (f".{key}" if key else "")
    assert message.startswith(f"{path}:{line}: {place}: ")
    assert says in message


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        (TOPIC, "", 8, "sources.orders.kafka: key 'topic' is missing"),
        (TOPIC, '      topic: ""\n', 9, "kafka.topic: expected the name of a topic"),
        (TOPIC, "      topic: 5\n", 9, "kafka.topic: found a number ('5'), expected a text"),
        (", [::1]:9093", ", localhost", 8, "'localhost' is no broker; expected host:port"),
        (", [::1]:9093", ", localhost:0", 8, "'localhost:0' is no broker"),
        (", [::1]:9093", ", localhost:70000", 8, "'localhost:70000' is no broker"),
        (", [::1]:9093", ",", 8, "'' is no broker"),
        (", [::1]:9093", ", :9092", 8, "':9092' is no broker"),
        (", [::1]:9093", ", kafka://localhost:port", 8, "is no broker"),
        ('      bootstrap: "localhost:9092, [::1]:9093"\n', "", 8, "key 'bootstrap' is missing"),
        ("    files: [orders.csv]\n", "    files: []\n", 5, "expected at least one file"),
        ("files: [orders.csv]", "files: [orders.csv]\n    partitions: 2", 6, "remove the key"),
        (
            "files: [orders.csv]\n    received: sent_at",
            "files: [orders.csv]",
            7,
            "needs 'received'",
        ),
        ("files: [orders.csv]\n    received: sent_at", "received: at", 5, "is no transport column"),
        (
            "files: [orders.csv]\n    received: sent_at",
            "files: [orders.csv]\n    received: null",
            8,
            "needs 'received': the transport column",
        ),
        (
            "files: [orders.csv]",
            "files: [orders.csv]\n    format: json",
            6,
            "sources.orders.format: is the format of messages, and the source has files too",
        ),
        (
            "bare: {files: [bare.csv]}",
            'bare: {received: sent_at, kafka: {bootstrap: "a:1", topic: b}}',
            13,
            "declare EventStream('bare', transport=['sent_at'], ...)",
        ),
        ("bare: {files: [bare.csv]}", "bare: {received: sent_at}", 13, "key 'files' is missing"),
        (
            "evaluate_until: 2026-02-15T00:00:00Z",
            "evaluate_until: 2026-02-15T00:00:00Z, stream_until: 2026-03-01T00:00:00Z",
            14,
            "splits.stream_until",
        ),
    ],
)
def test_a_source_with_a_topic_has_rules(
    write: Write, old: str, new: str, line: int, says: str
) -> None:
    path = write((old, new))
    message = failure(path)
    assert message.startswith(f"{path}:{line}: "), message
    assert says in message


def test_the_messages_of_a_source_without_files_may_be_named_by_the_source(write: Write) -> None:
    found = load(write(("  asked:\n", "  asked:\n    format: json\n")))
    assert found.sources["asked"].format == "json"
