"""States of a stream's last savepoint that are lost: what each command says, and does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.recovery.handoff_test import contents, late_arrivals, predictions
from tests.support.builds import make_build
from tests.support.folders import build_of, stream_of
from tests.support.proof_run import score_without_models
from tests.support.streaming_project import PROJECT, START, configuration
from tidemill.features.contract import MINUTE
from tidemill.features.errors import DamagedState, StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import StreamRun, last_states
from tidemill.pipelines.recovery.republish import republish
from tidemill.pipelines.recovery.savepoints import Savepoint, faults_of_savepoint
from tidemill.pipelines.run.paths import HANDOFF, SAVEPOINT, SAVEPOINTS, STATES
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.serving.generations.current import read_current
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import KeySpace

BEGIN, STOP = START + 2 * MINUTE, START + 11 * MINUTE
FIRST, SECOND = BEGIN + 2 * MINUTE, BEGIN + 4 * MINUTE


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score without a model, which these tests do not need."""
    score_without_models(monkeypatch)


def made(root: Path, seed: int = 3) -> Configuration:
    config = configuration(root, PROJECT, BEGIN, STOP, 2, mode="exact", poll_rows=20)
    make_build(config, late_arrivals(seed))
    return config


def run(config: Configuration, **options: Any) -> dict[str, Any]:
    return stream(config, QuietProgress(), **{"engine": "fnapi", **options})


@pytest.fixture(scope="module")
def twice_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose stream has stopped at two savepoints."""
    root = tmp_path_factory.mktemp("stopped") / "root"
    with pytest.MonkeyPatch.context() as patch:
        score_without_models(patch)
        config = made(root)
        run(config, until_us=FIRST)
        shutil.copytree(stream_of(root) / SAVEPOINTS, root.parent / "first")
        run(config, until_us=SECOND, resume=True)
    return root


@pytest.fixture
def config(twice_stopped: Path, tmp_path: Path) -> Configuration:
    """Its configuration, in a copy of the root."""
    shutil.copytree(twice_stopped, tmp_path / "root")
    return configuration(tmp_path / "root", PROJECT, BEGIN, STOP, 2, mode="exact", poll_rows=20)


def lose_the_folder(stream_folder: Path, _: Path) -> None:
    shutil.rmtree(stream_folder / SAVEPOINTS)


def lose_the_savepoint(stream_folder: Path, _: Path) -> None:
    shutil.rmtree(stream_folder / SAVEPOINTS / "00002")


def empty_the_savepoint(stream_folder: Path, _: Path) -> None:
    for path in (stream_folder / SAVEPOINTS / "00002").iterdir():
        path.unlink()


def lose_the_record(stream_folder: Path, _: Path) -> None:
    (stream_folder / SAVEPOINTS / "00002" / HANDOFF).unlink()


def take_an_older_copy(stream_folder: Path, first: Path) -> None:
    shutil.rmtree(stream_folder / SAVEPOINTS)
    shutil.copytree(first, stream_folder / SAVEPOINTS)


LOST = {
    lose_the_folder: r"savepoint, 2, are lost \(the folder .*stops is missing; none is left\)",
    lose_the_savepoint: r"savepoint, 2, are lost \(the folder .*00002 is missing; none is left\)",
    empty_the_savepoint: r"savepoint, 2, are lost \(the folder .*00002 is empty; none is left\)",
    lose_the_record: r"savepoint, 2, are lost \(the record .*handoff.json is missing; none",
    take_an_older_copy: r"savepoint, 2, are lost \(the folder .*00002 is missing; savepoint 1 is",
}


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of an earlier version"])
@pytest.mark.parametrize("lose", LOST, ids=lambda lose: lose.__name__)
def test_resume_says_which_savepoint_is_lost(
    lose: Callable[[Path, Path], None], recorded: bool, config: Configuration, twice_stopped: Path
) -> None:
    """And it changes nothing. Without the record the outputs of the second segment tell."""
    folder = stream_of(config.root)
    lose(folder, twice_stopped.parent / "first")
    if not recorded:
        (folder / SAVEPOINT).unlink()
    left = contents(folder)
    if not recorded and lose is take_an_older_copy:
        # The second segment may have been killed: the earlier version could not tell.
        assert run(config, resume=True)["segment"] == 2
        return
    message = LOST[lose] if recorded else r"savepoint, 1, are lost .*--resume to start over"
    with pytest.raises(StateMismatch, match=message) as error:
        run(config, resume=True)
    assert "run `tidemill stream` without --resume to start over" in str(error.value)
    if recorded:
        assert "all rows received before 20" in str(error.value)
    assert contents(folder) == left


def test_the_remedy_works(config: Configuration, tmp_path: Path) -> None:
    lose_the_folder(stream_of(config.root), config.root)
    run(config)
    whole = made(tmp_path / "whole")
    run(whole)
    releases = tuple(f"release__{view.name}" for view in PROJECT.views)
    assert predictions(config, releases) == predictions(whole, releases)


def test_a_savepoint_of_another_root_is_refused(config: Configuration, tmp_path: Path) -> None:
    other = made(tmp_path / "other", seed=4)
    run(other, until_us=FIRST)
    run(other, until_us=SECOND, resume=True)
    folder = stream_of(config.root) / SAVEPOINTS
    shutil.rmtree(folder)
    shutil.copytree(stream_of(other.root) / SAVEPOINTS, folder)
    with pytest.raises(StateMismatch, match=r"the states in .*00002 are of another stream"):
        run(config, resume=True)
    with pytest.raises(StateMismatch, match=r"the states in .*00002 are of another stream"):
        republish(config, QuietProgress())


@pytest.mark.parametrize("segment", [2, 5])
def test_a_savepoint_of_another_stream_of_the_same_build_is_refused(
    segment: int, config: Configuration, tmp_path: Path
) -> None:
    other = made(tmp_path / "other")
    for number in range(segment):
        run(other, until_us=FIRST + (number + 1) * MINUTE, resume=number > 0)
    folder = stream_of(config.root) / SAVEPOINTS
    shutil.rmtree(folder)
    shutil.copytree(stream_of(other.root) / SAVEPOINTS, folder)
    with pytest.raises(StateMismatch, match="of another stream"):
        run(config, resume=True)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_record_is_refused_with_the_remedy_of_a_savepoint(
    size: int, config: Configuration
) -> None:
    path = stream_of(config.root) / SAVEPOINTS / "00002" / HANDOFF
    path.write_bytes(path.read_bytes()[: size - 1] if size < 0 else path.read_bytes()[:size])
    if size < 0:  # the last byte is the end of the line
        path.write_bytes(path.read_bytes()[:-1])
    message = rf"{HANDOFF} is not JSON .*restore the folder .* without --resume to start over"
    for command in (lambda: run(config, resume=True), lambda: republish(config, QuietProgress())):
        with pytest.raises(DamagedState, match=message):
            command()
    assert len(faults_of_savepoint(read_current(config.root), recorded_run(config))) == 1


def recorded_run(config: Configuration) -> StreamRun:
    found = StreamRun.read(stream_of(config.root))
    assert found is not None
    return found


def test_one_operators_file_lost_is_refused_with_the_remedy_of_a_savepoint(
    config: Configuration,
) -> None:
    path = next((stream_of(config.root) / SAVEPOINTS / "00002").glob("cab-*"))
    path.unlink()
    message = rf"{path.name} is missing; restore the folder .* without --resume to start over"
    with pytest.raises(StateMismatch, match=message):
        run(config, resume=True)
    with pytest.raises(StateMismatch, match=message):
        republish(config, QuietProgress())
    faults = faults_of_savepoint(read_current(config.root), recorded_run(config))
    assert faults == [f"{path} is missing"]


def test_republish_says_what_is_lost_and_repeats_the_stream_from_its_beginning(
    config: Configuration, capsys: pytest.CaptureFixture[str]
) -> None:
    spaces = [(KeySpace.of(PROJECT.name, view), []) for view in PROJECT.views]

    def frontiers() -> list[dict[int, int]]:
        database = open_database(config.online_store)
        found = [dict(one.frontiers.by_shard) for one in database.read(spaces)]
        database.close()
        return found

    before = frontiers()
    lose_the_folder(stream_of(config.root), config.root)
    for path in config.root.glob("online.db*"):
        path.unlink()
    said: list[str] = []

    class Heard(QuietProgress):
        def say(self, text: str) -> None:
            said.append(text)

    republish(config, Heard())
    assert [text for text in said if "are lost" in text and "from its beginning instead" in text]
    assert frontiers() == before


def test_a_kill_between_the_record_of_the_states_and_that_of_the_savepoint_loses_nothing(
    config: Configuration,
) -> None:
    folder = stream_of(config.root)
    written = Savepoint.read(folder)
    assert written is not None
    replace(written, segment=1, states="0" * 16).write(folder)
    assert faults_of_savepoint(read_current(config.root), recorded_run(config)) == []
    assert run(config, resume=True)["segment"] == 3


def test_a_kill_before_the_first_savepoint_resumes_from_the_beginning(tmp_path: Path) -> None:
    config = made(tmp_path)
    run(config, until_us=FIRST)
    folder = stream_of(config.root)
    (folder / SAVEPOINT).unlink()
    shutil.rmtree(folder / SAVEPOINTS)
    assert last_states(read_current(config.root))[0] == build_of(config.root) / STATES
    assert run(config, resume=True)["segment"] == 1


def test_the_record_of_the_savepoint_is_read_by_later_versions(tmp_path: Path) -> None:
    """It is in roots of users: a changed format needs a new version."""
    text = {
        "format": "tidemill-savepoint", "version": 1, "checksum": "7371a2b98cbacf5f",
        "segment": 2, "as_of_us": 5, "polls": 7, "states": "0123456789abcdef",
    }  # fmt: skip
    (tmp_path / SAVEPOINT).write_text(json.dumps(text))
    assert Savepoint.read(tmp_path) == Savepoint(2, 5, 7, "0123456789abcdef")
