"""The keeper of savepoints: what counts, what is waited for, and what is said of what was lost."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.pipelines.stream.cuttings_test import copied, made, polls_of
from tests.pipelines.stream.marks_between_polls_test import marked, options_of, states
from tests.support.folders import stream_of
from tests.support.proof_run import score_without_models
from tests.support.random_engine import RandomEngine
from tests.support.stream_outputs import outputs_of, put_outputs, without_first
from tests.support.streaming_project import PROJECT
from tidemill.features.errors import NoSpace, SequenceError, StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.delivery.delivery import Delivery
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.handoff import check_handoff, last_states
from tidemill.pipelines.recovery.resume import Reached, Start, first_start, next_start, prepare
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import snapshot_policy
from tidemill.pipelines.stream.state_files import savepoint_folder
from tidemill.pipelines.stream_run.keeper import Keeper

AFTER = (3, 6)


@dataclass
class Polls:
    """Says what states contain, as a live input does."""

    polls: list[Poll]
    asked: int = 0
    fails: Exception | None = None
    refused: frozenset[str] = frozenset()

    def reached(self, polls: int) -> Reached:
        self.asked += 1
        if self.fails is not None:
            raise self.fails
        positions: dict[str, list[int]] = {}
        for part in self.polls[polls - 1].parts:
            positions.setdefault(part.source, []).append(part.stop)
        return Reached(self.polls[polls - 1].sent_us + polls, polls, positions, self.refused)


@dataclass
class Marked:
    """A stream that has run over marks; nothing counts yet."""

    config: Configuration
    start: Start
    keeper: Keeper
    polls: Polls

    @property
    def stream(self) -> Path:
        return self.start.current.stream_folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_EVENTS", 20)
    monkeypatch.setattr(snapshot_policy, "SNAPSHOT_TILES", 0)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return made(tmp_path_factory.mktemp("template"), "exact")


@pytest.fixture
def ran(template: Configuration, tmp_path: Path) -> Marked:
    return run_of(template, tmp_path, joiners=1)


def run_of(template: Configuration, folder: Path, joiners: int) -> Marked:
    config = copied(template, folder / "root", joiners)
    polls = polls_of(config)
    start, fills = prepare(config, first_start(config, None), QuietProgress())
    config = replace(config, pinned=start.current)
    shutil.copy(config.root / "online.db", config.root / "before.db")
    options = options_of(config, start.folder, start.current.stream_folder)
    RandomEngine(config, start, fills, options, random.Random(5)).run(marked(polls, AFTER))
    given = Polls(polls)
    delivery = Delivery.fence({}, start.current, 1, "run")
    return Marked(config, start, Keeper(config, start, fills, given, delivery, "random"), given)


def test_savepoints_count_one_after_the_other(ran: Marked) -> None:
    ran.keeper.finish(2)
    assert Savepoint.read(ran.stream) == Savepoint.of(ran.keeper.kept)
    assert ran.keeper.kept.segment == 2
    assert not savepoint_folder(ran.stream, 1).exists()
    whole = states(ran.config, 2)
    ran.keeper.finish(3)
    folder, handoff = last_states(ran.start.current)
    assert folder == savepoint_folder(ran.stream, 3)
    assert handoff == ran.keeper.kept
    assert handoff.polls == len(ran.polls.polls)
    check_handoff(folder, handoff, PROJECT, ran.config.shards)
    assert states(ran.config, 3) != whole
    assert next_start(ran.config, None).segment == 4


def test_it_watches_while_the_stream_runs(ran: Marked) -> None:
    late = savepoint_folder(ran.stream, 2) / "answers.state"
    late.rename(late.with_suffix(".later"))
    stopped: list[bool] = []
    with ran.keeper.keeping(lambda: stopped.append(True)):
        until(lambda: ran.keeper.kept.segment == 1)
        assert not ran.keeper.may_mark(3)
        time.sleep(0.2)
        assert ran.keeper.kept.segment == 1
        ran.polls.fails = NoSpace("the disk is full")
        late.with_suffix(".later").rename(late)
        time.sleep(0.2)
        assert ran.keeper.kept.segment == 1  # and the stream goes on
        ran.polls.fails = None
        until(lambda: ran.keeper.kept.segment == 3)
        assert ran.keeper.may_mark(4)
    assert not stopped


def test_an_error_stops_the_stream_and_is_raised_at_its_end(ran: Marked) -> None:
    stopped: list[bool] = []
    ran.polls.fails = KeyError("a bug")
    with ran.keeper.keeping(lambda: stopped.append(True)):
        until(lambda: bool(stopped))
        with pytest.raises(KeyError, match="a bug"):
            ran.keeper.finish(3)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(ran: Marked) -> None:
    next(savepoint_folder(ran.stream, 2).glob("zone-00001-of-00002.state")).unlink()


def test_a_savepoint_counts_once_the_states_of_all_joiners_are_there(
    template: Configuration, tmp_path: Path
) -> None:
    ran = run_of(template, tmp_path, joiners=3)
    folder = savepoint_folder(ran.stream, 1)
    states = [folder / f"answers-0000{number}-of-00003.state" for number in range(3)]
    data = states[2].read_bytes()
    states[2].unlink()
    with pytest.raises(SequenceError, match=r"answers-00002-of-00003\.state are missing"):
        ran.keeper.finish(1)
    states[2].write_bytes(states[1].read_bytes())
    with pytest.raises(StateMismatch, match="is of joiner 1 of 3, and joiner 2 of 3 begins with"):
        ran.keeper.finish(1)
    states[2].write_bytes((savepoint_folder(ran.stream, 2) / states[2].name).read_bytes())
    with pytest.raises(StateMismatch, match="joiner 2 of 3 has taken other releases than joiner 0"):
        ran.keeper.finish(1)
    states[2].write_bytes(data)
    ran.keeper.finish(1)
    assert {path.name for path in states} < ran.keeper.kept.files.keys()


def _release(ran: Marked) -> None:
    without_first(ran.stream / "releases", 2)


def _publication(ran: Marked) -> None:
    without_first(ran.stream / "publications" / "zone", 2)


def _prediction(ran: Marked) -> None:
    without_first(ran.stream / "predictions", 2)


def _doubled_prediction(ran: Marked) -> None:
    folder = ran.stream / "predictions"
    outputs = outputs_of(folder, 2)
    put_outputs(folder, 2, {**outputs, "9": outputs[min(outputs)]})


def _offline(ran: Marked) -> None:
    for path in ran.start.current.offline_root.glob("zone/*/_reached/*1-of-*"):
        path.unlink()


def _rejected(ran: Marked) -> None:
    ran.polls.refused = frozenset({"validate-scans-0-17"})


def _online(ran: Marked) -> None:
    shutil.copy(ran.config.root / "before.db", ran.config.root / "online.db")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_state, r"states at savepoint 2 are not all there \(zone-00001-of-00002.state are miss"),
        (_release, r"of \d+ releases, \d+ are recorded"),
        (_publication, r"the publications of release \d+ of view '\w+', shard \d, are not logged"),
        (_prediction, r"of \d+ requests, \d+ are answered or rejected"),
        (_doubled_prediction, r"of \d+ requests, \d+ are answered or rejected"),
        (_rejected, "the rejected records validate-scans-0-17 are not written"),
        (_offline, "the offline log is behind the releases of view 'zone', shard"),
        (_online, "the online store is behind the releases of view"),
    ],
)
def test_what_was_lost_keeps_a_savepoint_from_counting(
    ran: Marked, harm: Callable[[Marked], None], says: str
) -> None:
    ran.keeper.finish(1)
    harm(ran)
    with pytest.raises(SequenceError, match=f"the stream has ended, and .*{says}"):
        ran.keeper.finish(3)
    assert ran.keeper.kept.segment == 1
    assert last_states(ran.start.current)[0] == savepoint_folder(stream_of(ran.config.root), 1)


@pytest.mark.parametrize("joiners", [1, 3])
def test_a_killed_stream_goes_on_from_the_last_savepoint_that_counts(
    joiners: int, template: Configuration, tmp_path: Path
) -> None:
    """Outputs and states of all later segments are removed, and are made again."""
    ran = run_of(template, tmp_path, joiners)
    ran.keeper.finish(1)
    start = next_start(ran.config, None)
    assert (start.segment, start.handoff.polls) == (2, AFTER[0])
    start, fills = prepare(ran.config, start, QuietProgress())
    for folder in ("predictions", "releases", "publications"):
        names = [path.name for path in (ran.stream / folder).rglob("*") if path.is_file()]
        assert names
        assert {name[:6] for name in names} == {"00001-"}
    assert [path.name for path in (ran.stream / "stops").iterdir()] == ["00001"]
    polls = [replace(poll, epoch=0) for poll in ran.polls.polls[AFTER[0] :]]
    options = replace(options_of(ran.config, start.folder, ran.stream), segment=2)
    RandomEngine(ran.config, start, fills, options, random.Random(6)).run(marked(polls, AFTER[1:]))
    keeper = Keeper(ran.config, start, fills, ran.polls, ran.keeper.delivery, "random")
    keeper.finish(3)
    assert keeper.kept.polls == len(ran.polls.polls)
    segments = {int(path.name[:5]) for path in (ran.stream / "releases").iterdir()}
    assert segments == {1, 2, 3}
