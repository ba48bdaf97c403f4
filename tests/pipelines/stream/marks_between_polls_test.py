"""Marks of savepoints between polls: a run that goes on leaves what runs that stop there leave.

One log is replayed in runs that stop at some polls, and in runs that meet a mark there and go on,
under random cuttings into bundles, with repeats and with restarts from an engine's state. At each
mark states and files must be the same, bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.stream.cuttings_test import (
    JOINERS,
    MODES,
    OUTPUTS,
    copied,
    made,
    outputs,
    polls_of,
)
from tests.support.folders import offline_of, stream_of
from tests.support.proof_run import score_without_models
from tests.support.random_engine import RandomEngine
from tests.support.streaming_project import PARTITIONS, PROJECT
from tidemill.features.contract import TIME_MIN
from tidemill.features.errors import StateError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.resume import first_start, joiners_at, prepare
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import savepoint_files, snapshot_policy
from tidemill.pipelines.stream.answer_parts import joiner_of
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.joiner_key import ONLY_JOINER
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.state_files import handed_over, read_handoff, savepoint_folder
from tidemill.serving.files.segment_names import segment_of
from tidemill.serving.stores.places import OFFLINE

SEEDS = {"exact": 12, "eager": 5}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score without a model; write bases, snapshots and pieces, and join pieces."""
    score_without_models(monkeypatch)
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_EVENTS", 20)
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_TILES", 0)
    monkeypatch.setattr(snapshot_policy, "JOINER_LOG_BYTES", 4_000)
    monkeypatch.setattr(savepoint_files, "MOST_PIECES", 2)


def marked(polls: Sequence[Poll], after: Sequence[int]) -> list[Poll]:
    """Put a mark after some polls, and one where the run stops after the last."""
    out, epoch = [], 0
    for poll in polls:
        out.append(replace(poll, epoch=epoch, is_marked=poll.number in after))
        epoch = out[-1].next_epoch
    parts = tuple(
        replace(part, start=part.stop, rows=None, watermark_us=TIME_MIN) for part in polls[-1].parts
    )
    return [*out, Poll(polls[-1].number, 0, parts, is_last=True, epoch=epoch)]


def options_of(config: Configuration, folder: Path, stream: Path) -> FeaturizeOptions:
    return FeaturizeOptions(
        run="marks",
        shards=config.shards,
        partitions=PARTITIONS,
        mode=Mode(config.stream.mode),
        changes=True,
        handoff=folder,
        stream=stream,
        segment=1,
        joiners=config.stream.joiners,
    )


def run(
    config: Configuration, polls: Sequence[Poll], after: Sequence[int], chance: random.Random | None
) -> RandomEngine:
    start, fills = prepare(config, first_start(config, None), QuietProgress())
    options = options_of(config, start.folder, start.current.stream_folder)
    engine = RandomEngine(config, start, fills, options, chance)
    engine.run(marked(polls, after))
    return engine


def states(config: Configuration, segment: int) -> dict[str, bytes]:
    """Return the states at a savepoint, whole; those of joiners as one would have them."""
    stream = stream_of(config.root)
    folder = savepoint_folder(stream, segment)
    joiners = joiners_at(config, folder)
    assert joiners.frontiers() is joiners.all[0].frontiers
    for joiner in joiners.all:
        taken = {*joiner.closed, *joiner.pending}
        assert {joiner_of(group, config.stream.joiners) for group in taken} <= {joiner.key}
    alone = replace(joiners.all[0], key=ONLY_JOINER)
    alone.frontiers, alone.numbers = joiners.frontiers(), joiners.all[0].numbers
    # In which order groups are answered depends on the engine.
    alone.closed = dict(sorted(x for one in joiners.all for x in one.closed.items()))
    alone.pending = dict(sorted(x for one in joiners.all for x in one.pending.items()))
    found = {"joiners": alone.state()}
    for view in range(len(PROJECT.views)):
        for shard in range(config.shards):
            key = operator_key(PROJECT, view, shard, config.shards)
            operator = make_operator(PROJECT, key, options_of(config, folder, stream))
            read_handoff(folder, operator)
            found[key] = handed_over(operator)
    return found


def written(config: Configuration, until: int) -> dict[str, Any]:
    """Return the content of the files of the segments up to one, without their segments."""
    found: dict[str, Any] = {}
    for segment in range(1, until + 1):
        for name, content in outputs(config.root, segment).items():
            folder, _, rest = name.rpartition("/")
            if folder.endswith("_reached"):
                continue  # how far each shard reaches; named by shard
            plain = f"{folder}/{rest.partition('-')[2]}"
            assert plain not in found, "two segments have written it"
            found[plain] = content
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_goes_on_behind_marks_leaves_what_runs_that_stop_there_leave(
    mode: str, tmp_path: Path
) -> None:
    template = made(tmp_path / "template", mode)
    polls = polls_of(template)
    after = [2, 3, 6, len(polls) - 1]
    assert len(polls) > 8
    stopped = []
    for number in (*after, len(polls)):
        config = copied(template, tmp_path / f"until-{number}")
        run(config, polls[:number], (), None)
        stopped.append(config)
    bases = pieces = 0
    for seed in range(SEEDS[mode]):
        config = copied(template, tmp_path / str(seed), JOINERS[seed % len(JOINERS)])
        run(config, polls, after, random.Random(seed) if seed else None)
        for segment, other in enumerate(stopped, 1):
            found, expected = states(config, segment), states(other, 1)
            assert [place for place in expected if found[place] != expected[place]] == []
            found, wanted = written(config, segment), written(other, 1)
            assert found.keys() == wanted.keys()
            assert [name for name in wanted if found[name] != wanted[name]] == []
        names = [path.name for path in (stream_of(config.root) / "stops").rglob("*.state")]
        bases += sum(".base-" in name for name in names)
        pieces += sum(".since-" in name for name in names)
    assert bases > 10
    assert pieces > 10


def test_every_output_says_its_segment(tmp_path: Path) -> None:
    config = made(tmp_path / "root", "exact")
    polls = polls_of(config)
    run(config, polls, (5, 9), None)
    for folder in OUTPUTS:
        place = offline_of(config.root) if folder == OFFLINE else stream_of(config.root) / folder
        names = [path.name for path in place.rglob("*") if path.is_file()]
        found = {segment for name in names if (segment := segment_of(name))}
        assert found <= {1, 2, 3}
        assert len(found) > 1 or folder == paths.REJECTED_BY_STREAM


def test_a_piece_of_a_state_that_is_damaged_or_gone_is_an_error(tmp_path: Path) -> None:
    config = made(tmp_path / "root", "exact")
    run(config, polls_of(config), (3, 6), None)
    folder = savepoint_folder(stream_of(config.root), 3)
    piece = max(folder.glob("*.since-*"), key=lambda path: path.name[-20:])
    data = piece.read_bytes()
    piece.write_bytes(data[:-1])
    with pytest.raises(StateError, match=str(piece)):
        states(config, 3)
    piece.unlink()
    with pytest.raises((StateError, FileNotFoundError), match=r"\.since-"):
        states(config, 3)
    assert states(config, 2)
