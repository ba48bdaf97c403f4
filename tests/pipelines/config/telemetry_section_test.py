"""How a stream shows itself, in the YAML file: what is accepted and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.strict_yaml import read_file
from tidemill.pipelines.config.telemetry_section import (
    LogOptions,
    MetricsPage,
    TraceOptions,
    read_logging,
    read_metrics,
    read_tracing,
)


def read(folder: Path, text: str) -> tuple[MetricsPage | None, LogOptions, TraceOptions | None]:
    (folder / "tidemill.yaml").write_text(text)
    top = read_file(folder / "tidemill.yaml").section(("metrics", "logging", "tracing"))
    return read_metrics(top), read_logging(top), read_tracing(top)


def test_by_default_nothing_is_served_and_the_log_is_text(tmp_path: Path) -> None:
    assert read(tmp_path, "{}") == (None, LogOptions("text"), None)
    assert read(tmp_path, "logging: {}") == (None, LogOptions("text"), None)


def test_what_the_sections_say(tmp_path: Path) -> None:
    text = (
        'metrics: {listen: "localhost:9464"}\nlogging: {format: json}\n'
        'tracing: {endpoint: "http://localhost:4318"}\n'
    )
    assert read(tmp_path, text) == (
        MetricsPage("localhost:9464"),
        LogOptions("json"),
        TraceOptions("http://localhost:4318"),
    )


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("localhost:9464", ("localhost", 9464)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_addresses(listen: str, address: tuple[str, int]) -> None:
    assert MetricsPage(listen).address == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metrics: {}", "key 'listen' is missing"),
        ("metrics: {listen: localhost}", "expected host:port"),
        ('metrics: {listen: ":9464"}', "expected host:port"),
        ('metrics: {listen: "a:65536"}', "expected host:port"),
        ('metrics: {listen: "a:-1"}', "expected host:port"),
        ('metrics: {listen: "a:1", lisen: 2}', "unknown key 'lisen'"),
        ("logging: {format: xml}", "json"),
        ("logging: {levle: debug}", "unknown key 'levle'; did you mean 'level'"),
        ("logging: {level: loud}", "debug"),
        ("tracing: {}", "key 'endpoint' is missing"),
        ("tracing: {endpoint: localhost}", "expected a URL"),
        ('tracing: {endpoint: "ftp://a"}', "expected a URL"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tidemill\.yaml:1") as refused:
        read(tmp_path, text)
    assert said in str(refused.value)
