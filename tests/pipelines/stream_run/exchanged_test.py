"""An exchange is for engines with workers elsewhere: others leave it unused, and say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.said import Said
from tests.support.streaming_project import ENGINES, configuration
from tests.support.trained_bundle import PROJECT, START
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import choose_engine
from tidemill.pipelines.stream_run.exchanged import check_exchange, meeting_of
from tidemill.pipelines.stream_run.stream import stream
from tidemill.serving.generations.current import Current
from tidemill.serving.stores.redis_place import RedisPlace


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    """A configuration with an exchange, and an online store in a file."""
    made = configuration(tmp_path, PROJECT, START, START)
    return replace(made, stream=replace(made.stream, exchange=f"file://{tmp_path}/exchange"))


@pytest.fixture
def current(tmp_path: Path) -> Current:
    """The folders of a generation."""
    return Current(tmp_path, "0" * 16, 1, 1, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_without_workers_elsewhere_leaves_it_unused_and_says_so(
    engine: str, config: Configuration, current: Current
) -> None:
    choice, progress = choose_engine(engine, streaming=True), Said()
    check_exchange(config, choice, progress.say)
    assert progress.lines == [
        f"stream.exchange is not used: the engine {engine!r} has no workers elsewhere"
    ]
    assert meeting_of(config, current, choice) is None


def test_workers_elsewhere_reach_no_store_in_a_file(config: Configuration) -> None:
    progress = Said()
    with pytest.raises(ConfigurationError, match=r"stream\.exchange: .*online\.db; let .* Redis"):
        check_exchange(config, choose_engine("flink", streaming=True), progress.say)
    # Before anything is done.
    with pytest.raises(ConfigurationError, match=r"stream\.exchange"):
        stream(config, progress, engine="flink")
    assert progress.lines == []
    assert list(config.root.iterdir()) == []


def test_workers_elsewhere_meet_the_program_there(config: Configuration, current: Current) -> None:
    config = replace(config, online_store=RedisPlace())
    choice, progress = choose_engine("flink", streaming=True), Said()
    check_exchange(config, choice, progress.say)
    assert progress.lines == []
    assert meeting_of(config, current, choice) is not None


@pytest.mark.parametrize("engine", [*ENGINES, "flink"])
def test_without_an_exchange_there_is_nothing_to_say(
    engine: str, config: Configuration, current: Current
) -> None:
    config = replace(config, stream=replace(config.stream, exchange=None))
    choice, progress = choose_engine(engine, streaming=True), Said()
    check_exchange(config, choice, progress.say)
    assert progress.lines == []
    assert meeting_of(config, current, choice) is None
