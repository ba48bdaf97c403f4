"""Two programs on one online store: the elder is paused anywhere, wakes later, and is refused.

The elder is a stream of another root, or of the same root beside a backfill that corrects history.
"""

from __future__ import annotations

import csv
import functools
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.paused import Paused
from tests.support.proof_run import (
    EVALUATE_UNTIL,
    PROJECT,
    configuration,
    rides_yaml,
    score_without_models,
    write_sources,
)
from tests.support.stores import STORES, place_of
from tidemill.features.contract import HOUR
from tidemill.features.errors import HeldByAnotherRoot, SupersededWriter
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io import replay
from tidemill.pipelines.recovery.republish import shown_frontiers
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.stores.online_places import OnlinePlace, default_place

END = EVALUATE_UNTIL + 6 * HOUR


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)
    # Every poll is a bundle, so there are many writes.
    monkeypatch.setattr(replay._Read, "moment_s", 0.0)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, OnlinePlace]]:
    """The kind of the store, and its place."""
    (tmp_path / "store").mkdir()
    with place_of(request.param, tmp_path / "store") as place:
        yield request.param, place


def root_of(folder: Path, name: str, place: OnlinePlace) -> Configuration:
    config = configuration(folder, folder / name)
    return replace(
        config,
        online_store=place,
        splits=replace(config.splits, stream_until_us=END),
        stream=replace(config.stream, poll_rows=5),
    )


def run(config: Configuration, **options: Any) -> dict[str, Any]:
    return stream(config, QuietProgress(), engine="fnapi", **options)


def mismatches(config: Configuration) -> int:
    figures = verify(config, QuietProgress(), sample=20)
    assert figures["first_mismatches"] == []
    assert figures["store_values"] > 0
    return int(figures["mismatches"])


def copied(config: Configuration, folder: Path) -> Configuration:
    """Copy a root, which keeps its id, before its stream has begun."""
    shutil.copytree(config.root, folder)
    return replace(config, root=folder)


def test_an_elder_stream_of_another_root_is_refused_wherever_it_was_paused(
    store: tuple[str, OnlinePlace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, place = store
    write_sources(tmp_path)
    roots = [root_of(tmp_path, name, place) for name in ("elder", "younger")]
    for one in roots:
        backfill(one, QuietProgress())
    counted = copied(roots[0], tmp_path / "counted")
    steps = Paused(lambda: run(counted), 0).count(kind, monkeypatch)
    assert steps > 10
    refused = 0
    for number in sorted({1, steps // 3, steps // 2, steps}):
        database = open_database(place)
        database.drop([KeySpace.of(PROJECT.name, view) for view in PROJECT.views])
        database.close()
        elder, younger = (copied(one, tmp_path / f"{one.root.name}-{number}") for one in roots)
        program = Paused(functools.partial(run, elder, take_over=True), number)
        taken_over = False
        with program.paused(kind, monkeypatch):
            try:
                run(younger)
            except HeldByAnotherRoot:
                taken_over = True
                run(younger, take_over=True)
        if program.error is not None:
            assert isinstance(program.error, (SupersededWriter, HeldByAnotherRoot)), program.error
            refused += 1
        loser = elder if taken_over or program.error is not None else younger
        assert mismatches(younger if loser is elder else elder) == 0
        with pytest.raises(HeldByAnotherRoot, match="--take-over"):
            run(loser)
    assert refused > 1


def test_a_root_takes_over_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path)
    shared = f"online_store: {{type: sqlite, path: {tmp_path / 'shared.db'}}}"
    for root in ("one", "two"):
        (tmp_path / f"{root}.yaml").write_text(rides_yaml(root, "2026-01-03T06:00:00Z", shared))

    def tidemill(*arguments: str, root: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--config", str(tmp_path / f"{root}.yaml")])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    for root in ("one", "two"):
        assert tidemill("backfill", root=root)[0] == 0
    assert tidemill("stream", root="one")[0] == 0
    for command in (["stream"], ["backfill", "--publish"]):
        status, said = tidemill(*command, root="two")
        assert status == 1
        assert re.search("another root: .*`tidemill stream --take-over`", said), said
    assert tidemill("verify", "--sample", "20", root="one")[0] == 0
    status, said = tidemill("stream", "--take-over", root="two")
    assert status == 0, said
    status, said = tidemill("verify", "--sample", "20", root="two")
    assert status == 0, said
    assert "0 mismatches" in said
    status, said = tidemill("stream", root="one")
    assert (status, "`tidemill stream --take-over`" in said) == (1, True), said


@pytest.mark.parametrize("publish", [False, True])
def test_a_correction_beside_a_stream(
    publish: bool,
    store: tuple[str, OnlinePlace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream ends by name if readers are switched away from it, and else in its generation."""
    kind, place = store
    write_sources(tmp_path)
    first = root_of(tmp_path, "first", place)
    backfill(first, QuietProgress(), publish=True)
    counted = replace(copied(first, tmp_path / "counted"), online_store=default_place(tmp_path))
    steps = Paused(lambda: run(counted), 0).count("sqlite", monkeypatch)
    program = Paused(lambda: run(first), steps // 2)
    with program.paused(kind, monkeypatch):
        path = tmp_path / "rides.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["fare"] = row["fare"] and str(float(row["fare"]) + 1)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        before = shown_frontiers(first)
        backfill(first, QuietProgress(), publish=publish)
        shown = shown_frontiers(first)
        assert all(shown[at] >= frontier for at, frontier in before.items())
        if publish:
            assert mismatches_of_store(first) == 0
    if publish:
        assert isinstance(program.error, SupersededWriter)
    else:
        assert program.error is None
        assert mismatches_of_store(first) == 0
    run(first)
    assert mismatches(first) == 0


def mismatches_of_store(config: Configuration) -> int:
    figures = verify(config, QuietProgress(), sample=20)
    assert figures["store_values"] > 0
    return int(figures["store_mismatches"])
