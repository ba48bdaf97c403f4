"""What differs between two files, and which of it a stream takes over while it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.memory_topics import MemoryTopics, TopicProject
from tidemill.features.contract import DAY, MINUTE, SECOND
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.live_settings import LIVE_KEYS, changes, with_live_values
from tidemill.pipelines.config.telemetry_section import LogOptions, MetricsPage


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    archive = Archive(tmp_path / "archive", keep_us=DAY)
    return TopicProject(tmp_path / "shop", MemoryTopics(), archive=archive).config()


def edited(config: Configuration) -> Configuration:
    """Return another file: every live key, and others."""
    assert config.archive is not None
    sources = dict(config.sources)
    sources["payments"] = replace(sources["payments"], max_rejected=0.5)
    return replace(
        config,
        stream=replace(config.stream, savepoint_every_us=SECOND, poll_rows=7, joiners=2),
        archive=replace(config.archive, every_us=MINUTE, keep_us=None),
        logging=LogOptions(level="debug"),
        sources=sources,
        metrics=MetricsPage("localhost:9464"),
        shards=3,
        give_up_after_us=1,
    )


def test_every_change_is_named_by_its_key_and_says_whether_it_waits(config: Configuration) -> None:
    found = {one.key: one.is_live for one in changes(config, edited(config))}
    assert found == {
        "shards": False,
        "sources.payments.max_rejected": True,
        "stream.poll_rows": False,
        "stream.savepoint_every": True,
        "stream.joiners": False,
        "online_store.give_up_after": False,
        "archive.keep": True,
        "archive.every": True,
        "metrics": False,
        "logging.level": True,
    }
    live = {key.replace("payments", "NAME") for key, is_live in found.items() if is_live}
    assert live == set(LIVE_KEYS)
    assert changes(config, config) == []


def test_only_live_values_are_taken_over(config: Configuration) -> None:
    now = edited(config)
    taken = with_live_values(config, now)
    assert [one.key for one in changes(config, taken)] == [
        one.key for one in changes(config, now) if one.is_live
    ]
    assert not any(one.is_live for one in changes(taken, now))


def test_an_archive_or_a_source_that_comes_or_goes_waits(config: Configuration) -> None:
    sources = {name: one for name, one in config.sources.items() if name != "refunds"}
    now = replace(config, archive=None, sources=sources)
    assert {one.key: one.is_live for one in changes(config, now)} == {
        "archive": False,
        "sources.refunds": False,
    }
    assert with_live_values(config, now) == config
    moved = replace(config, archive=Archive(Path("/elsewhere")))
    assert [one.key for one in changes(with_live_values(config, moved), moved)] == [
        "archive.folder"
    ]
