"""The topics that a stream writes to, as the YAML file names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.features.contract import MINUTE, SECOND
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.sink_section import KafkaSink, read_sinks
from tidemill.pipelines.config.strict_yaml import read_file


def sinks(folder: Path, text: str) -> dict[str, KafkaSink]:
    (folder / "tidemill.yaml").write_text(text)
    return read_sinks(read_file(folder / "tidemill.yaml").section(), folder)


def test_a_file_without_sinks_has_none(tmp_path: Path) -> None:
    assert sinks(tmp_path, "project: project:project\n") == {}


def test_defaults(tmp_path: Path) -> None:
    found = sinks(tmp_path, "predictions: {kafka: {bootstrap: 'localhost:9092', topic: p}}\n")
    assert found == {"predictions": KafkaSink(bootstrap=("localhost:9092",), topic="p")}
    assert found["predictions"].give_up_after_us == 10 * MINUTE


def test_all_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "s3cret")
    found = sinks(
        tmp_path,
        "rejected:\n  kafka:\n    bootstrap: 'a:1, b:2'\n    topic: r\n    compression: gzip\n"
        "    give_up_after: 5s\n    tls: true\n    username: u\n    password_env: KAFKA_PASSWORD\n"
        "    mechanism: PLAIN\n",
    )["rejected"]
    assert (found.bootstrap, found.topic, found.compression) == (("a:1", "b:2"), "r", "gzip")
    assert found.give_up_after_us == 5 * SECOND
    assert found.connection.protocol == "SASL_SSL"
    assert found.connection.sasl is not None
    assert found.connection.sasl.password == "s3cret"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("predictions: {}", "key 'kafka' is missing"),
        ("predictions: {kafka: {topic: p}}", "key 'bootstrap' is missing"),
        ("predictions: {kafka: {bootstrap: 'a:1'}}", "key 'topic' is missing"),
        ("predictions: {kafka: {bootstrap: 'a:1', topic: ''}}", "the name of a topic"),
        ("predictions: {kafka: {bootstrap: 'a', topic: p}}", "is no broker"),
        ("predictions: {kafka: {bootstrap: 'a:1', topic: p, compresion: zstd}}", "compression"),
        ("predictions: {kafka: {bootstrap: 'a:1', topic: p, compression: lzma}}", "zstd"),
        ("rejected: {kafka: {bootstrap: 'a:1', topic: p, format: json}}", "unknown key 'format'"),
        ("rejected: {kafka: {bootstrap: 'a:1', topic: p, username: u}}", "password_env"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        sinks(tmp_path, text + "\n")
