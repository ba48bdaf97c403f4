"""The clock of stock clients follows the stream that fills the store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.pipelines.commands.apply_test import folder, written
from tidemill.pipelines.commands.cli import commands
from tidemill.pipelines.config.configuration import Configuration, Source, load
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.reader_clock import reader_clock, show_live_clock
from tidemill.serving.generations.current import Current, write_current
from tidemill.serving.stores.feast_config import FEATURE_STORE_YAML
from tidemill.serving.stores.online_places import Clock

__all__ = ["folder"]


class _Live(Source):
    """A source whose rows come as they happen; there is none yet that reads them."""

    @property
    def is_live(self) -> bool:
        return True


def _stream(clock: Clock) -> StreamRun:
    return StreamRun("0" * 16, "exact", 10, False, "g", 0, {}, {}, clock=clock)


def _begin(config: Configuration, clock: Clock) -> None:
    current = Current(config.root, "g", build=1, offline=1, stream=1)
    write_current(current)
    current.stream_folder.mkdir(parents=True, exist_ok=True)
    _stream(clock).write(current.stream_folder)


def _written_clock(config: Configuration) -> str:
    text = (config.root / FEATURE_STORE_YAML).read_text()
    clock: str = yaml.safe_load(text)["online_store"]["clock"]
    return clock


def _apply(path: Path, *words: str) -> str:
    done = CliRunner().invoke(commands, ["apply", "--config", str(path), *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_one_live_source_makes_the_clock_the_wall_clock(folder: Path) -> None:
    config = load(written(folder, "parcels_first"))
    assert config.clock == "replay"
    live = {"scans": _Live("scans", ("x",))}
    mixed = dataclasses.replace(config, sources={**config.sources, **live})
    assert mixed.clock == "wall"


@pytest.mark.parametrize("clock", ["replay", "wall"])
def test_apply_declares_the_clock_of_the_stream(folder: Path, clock: Clock) -> None:
    path = written(folder, "parcels_first")
    config = load(path)
    assert reader_clock(config) == "replay"  # no stream yet, and all sources are files
    _begin(config, clock)
    assert reader_clock(config) == clock
    assert f"feature_store.yaml: clock {clock}" in _apply(path)
    assert _written_clock(config) == clock
    other = "wall" if clock == "replay" else "replay"
    _apply(path, "--clock", other)
    assert _written_clock(config) == other


def test_live_stream_changes_the_clock_when_it_begins_and_a_replay_leaves_it(folder: Path) -> None:
    path = written(folder, "parcels_first")
    config = load(path)
    show_live_clock(config, _stream("wall"))
    assert not (config.root / FEATURE_STORE_YAML).exists()
    _apply(path)
    assert _written_clock(config) == "replay"
    show_live_clock(config, _stream("wall"))
    assert _written_clock(config) == "wall"
    show_live_clock(config, _stream("replay"))
    assert _written_clock(config) == "wall"


def test_record_of_a_former_version_is_a_replay(folder: Path) -> None:
    golden = Path(__file__).parents[2] / "golden" / "frames_2"
    run = StreamRun.read(golden)
    assert run is not None
    assert run.clock == "replay"
