"""The proof of a stream that has not ended: stopped, killed, or running. What is there is right."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.folders import stream_of
from tests.support.paused import Paused
from tests.support.proof_run import (
    EVALUATE_UNTIL,
    FEATURES,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.stream_outputs import outputs_of, put_outputs, without_first
from tidemill.features.contract import HOUR
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io import replay
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify

FIRST, SECOND = EVALUATE_UNTIL + 6 * HOUR, EVALUATE_UNTIL + 12 * HOUR


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    poll_by_poll(monkeypatch)


def poll_by_poll(patch: pytest.MonkeyPatch) -> None:
    score_without_models(patch)
    patch.setattr(replay._Read, "moment_s", 0.0)  # every poll is a bundle


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("unfinished")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress(), publish=True)
    return config


def copied(config: Configuration, root: Path, mode: str) -> Configuration:
    shutil.copytree(config.root, root)
    made = configuration(config.path.parent, root, mode)
    return replace(made, stream=replace(made.stream, poll_rows=15))


@pytest.fixture(scope="module", params=["exact", "eager"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(mode: str, backfilled: Configuration, tmp_path: Path) -> Configuration:
    return copied(backfilled, tmp_path / "run", mode)


class Stopped(NamedTuple):
    """A stream that has stopped.

    Attributes:
        config: Its configuration.
        told: What it has told.
    """

    config: Configuration
    told: dict[str, Any]


@pytest.fixture(scope="module")
def stopped_once(
    mode: str, backfilled: Configuration, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    config = copied(backfilled, tmp_path_factory.mktemp("stopped") / "run", mode)
    with pytest.MonkeyPatch.context() as patch:
        poll_by_poll(patch)
        return Stopped(config, run(config, until_us=FIRST))


@pytest.fixture
def stopped(mode: str, stopped_once: Stopped, tmp_path: Path) -> Stopped:
    """A copy of a stream that has stopped at `FIRST`."""
    return Stopped(copied(stopped_once.config, tmp_path / "run", mode), stopped_once.told)


@pytest.fixture(scope="module")
def goes_on_once(
    mode: str, stopped_once: Stopped, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    config = copied(stopped_once.config, tmp_path_factory.mktemp("goes_on") / "run", mode)
    with pytest.MonkeyPatch.context() as patch:
        poll_by_poll(patch)
        return Stopped(config, run(config, resume=True, until_us=SECOND))


def run(config: Configuration, **options: Any) -> dict[str, Any]:
    return stream(config, QuietProgress(), engine="fnapi", **options)


def proven(config: Configuration) -> dict[str, Any]:
    figures = verify(config, QuietProgress(), 20)
    assert not figures["first_mismatches"], str(figures["first_mismatches"][:2])
    assert figures["mismatches"] == 0
    return figures


def test_a_stream_that_stopped_is_proven_as_far_as_it_has_come(stopped: Stopped) -> None:
    config, told = stopped
    figures = proven(config)
    assert 20 < figures["predictions"] == figures["requests"] == told["predictions"]
    assert figures["waiting_requests"] > 40
    assert figures["store_rows"] == 10
    assert figures["offline_rows"] > 1_000
    told = run(config, resume=True, until_us=SECOND)
    assert proven(config)["predictions"] == told["predictions"]
    run(config, resume=True)
    figures = proven(config)
    assert (figures["waiting_requests"], figures["requests"]) == (0, 148)


def test_what_a_stopped_stream_has_answered_must_be_there(stopped: Stopped) -> None:
    config, told = stopped
    without_first(stream_of(config.root) / "predictions", 1)
    figures = verify(config, QuietProgress(), 20)
    lost = told["predictions"] - figures["predictions"]
    assert lost > 0
    assert figures["mismatches"] == lost * FEATURES
    assert {row["what"] for row in figures["first_mismatches"]} == {"lost"}


@pytest.mark.parametrize("recorded", [True, False])
def test_a_killed_stream_may_have_written_anything_but_wrong_things(
    recorded: bool, mode: str, stopped_once: Stopped, goes_on_once: Stopped, tmp_path: Path
) -> None:
    config = copied(goes_on_once.config, tmp_path / "run", mode)
    # As a kill in the second segment would leave it: any of its files may be missing.
    before = stream_of(stopped_once.config.root)
    shutil.rmtree(stream_of(config.root) / "stops")
    shutil.copytree(before / "stops", stream_of(config.root) / "stops")
    shutil.copy(before / "savepoint.json", stream_of(config.root))
    for name in ("releases", "publications", "predictions"):
        folder = stream_of(config.root) / name
        for place in [folder] if name != "publications" else sorted(folder.iterdir()):
            outputs = outputs_of(place, 2)
            names = sorted(outputs)
            for lost in names[::3] if recorded or name != "releases" else names:
                del outputs[lost]
            put_outputs(place, 2, outputs)
    assert proven(config)["waiting_requests"] > 40
    # The files of the first segment must be there.
    without_first(stream_of(config.root) / "publications" / "by_driver", 1)
    figures = verify(config, QuietProgress(), 0)
    assert [row["what"] for row in figures["first_mismatches"]] == ["publication"]


def test_a_running_stream_is_proven_as_far_as_it_has_come(
    config: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Paused(lambda: run(config), 12)
    with program.paused("sqlite", monkeypatch):
        figures = proven(config)
        assert figures["waiting_requests"] > 0
    assert program.error is None
    assert proven(config)["waiting_requests"] == 0
