"""Cuts: recorded before a poll is sent, and repeated after a recovery."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.features.errors import BatchConflict, DamagedState
from tidemill.pipelines.io.cuts import Cut, CutLog, FileCutLog, Positions, next_cut

CUTS = [Cut(1, (3, 0)), Cut(2, (3, 4)), Cut(5, (2**40, 9))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "below" / "cuts.log"
    log = FileCutLog(path)
    assert log.recorded() == []
    for cut in CUTS:
        log.append(cut)
    return path


def test_recorded_cuts_come_back_in_order(path: Path) -> None:
    assert FileCutLog(path).recorded() == CUTS
    FileCutLog(path).append(CUTS[-1])
    assert FileCutLog(path).recorded() == CUTS


def test_a_torn_line_is_ignored_and_overwritten(path: Path) -> None:
    """Its poll was not sent, so it may be cut elsewhere now."""
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for length in range(len(last)):
        path.write_bytes(whole[: len(whole) - len(last) + length])
        log = FileCutLog(path)
        assert log.recorded() == CUTS[:2]
        log.append(Cut(3, (5, 5)))
        assert FileCutLog(path).recorded() == [*CUTS[:2], Cut(3, (5, 5))]


def test_any_damage_to_a_whole_line_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        if whole[place : place + 1] == b"\n":
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedState, match=r"cuts\.log: the line .* was damaged: .*--resume"):
            FileCutLog(path).recorded()
    path.write_bytes(whole + b"[[[")
    with pytest.raises(DamagedState, match=r"cuts\.log: the line b'\[\[\[' was damaged"):
        FileCutLog(path).recorded()


@pytest.mark.parametrize(
    "cut",
    [Cut(5, (2**40, 8)), Cut(5, (2**40, 10)), Cut(4, (2**40, 9)), Cut(6, (2**40, 8)), Cut(6, (9,))],
)
def test_a_cut_that_does_not_continue_the_recorded_ones_is_refused(path: Path, cut: Cut) -> None:
    with pytest.raises(BatchConflict, match="poll"):
        FileCutLog(path).append(cut)
    assert FileCutLog(path).recorded() == CUTS


def test_cuts_that_will_not_be_repeated_are_forgotten(path: Path) -> None:
    log = FileCutLog(path)
    log.keep_before(2)
    assert log.recorded() == FileCutLog(path).recorded() == CUTS[:1]
    log.append(Cut(2, (7, 7)))
    assert FileCutLog(path).recorded() == [CUTS[0], Cut(2, (7, 7))]


def sent(log: CutLog, after: Cut, ends: list[Positions]) -> list[Cut]:
    """Read a live log that has grown to each of these ends; return the polls that were sent."""
    polls = []
    for end in ends:
        after = next_cut(log, after, lambda end=end: end)  # type: ignore[misc]
        polls.append(after)
    return polls


def test_a_recovering_reader_repeats_the_recorded_cuts_and_then_makes_new_ones(
    tmp_path: Path,
) -> None:
    """The engine goes back to a checkpoint after poll 1; stores have seen polls 2 and 3."""
    start = Cut(0, (0, 0))
    first = sent(FileCutLog(tmp_path / "cuts"), start, [(2, 1), (2, 5), (4, 5)])
    assert [cut.number for cut in first] == [1, 2, 3]
    more = [(9, 9), (9, 9), (10, 9)]
    again = sent(FileCutLog(tmp_path / "cuts"), first[0], more)
    assert again == [*first[1:], Cut(4, (10, 9))]


def test_a_cut_is_recorded_before_it_is_given_out(tmp_path: Path) -> None:
    log = FileCutLog(tmp_path / "cuts")
    assert next_cut(log, Cut(0, (0,)), lambda: (3,)) in FileCutLog(tmp_path / "cuts").recorded()


def test_a_reader_whose_checkpoint_is_not_of_the_recorded_cuts_is_refused(path: Path) -> None:
    with pytest.raises(BatchConflict, match="the cut of poll 3 is not recorded, that of poll 5 is"):
        next_cut(FileCutLog(path), CUTS[1], lambda: (9, 9))
    with pytest.raises(BatchConflict, match=r"poll 2 ends at positions .* before poll 1"):
        next_cut(FileCutLog(path), Cut(1, (3, 9)), lambda: (9, 9))
