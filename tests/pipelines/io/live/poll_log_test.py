"""Polls that are written down before they are sent: read back whole, torn, damaged, removed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.features.errors import BatchConflict, DamagedState, NoSpace, TidemillError
from tidemill.features.rows import rejected
from tidemill.pipelines.io.live import poll_log
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog


def entry(number: int, size: int = 100, fill: bytes = b"x") -> LoggedPoll:
    return LoggedPoll(
        number, {"taps": (number, 0), "asks": (7,)}, {"taps": (number, -5)}, fill * size
    )


def told(found: LoggedPoll) -> tuple[int, dict[str, tuple[int, ...]], bytes]:
    return found.number, dict(found.offsets), bytes(found.poll)


def numbers(log: PollLog, after: int = 0) -> list[int]:
    return [found.number for found in log.read(after)]


def written(folder: Path, *entries: LoggedPoll) -> PollLog:
    log = PollLog(folder)
    for one in entries:
        log.append(one)
    log.close()
    return PollLog(folder)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_polls_come_back_as_they_were_logged(tmp_path: Path) -> None:
    records = rejected.batch(
        rejected.Stage.READ, stream="taps", partition=0, positions=np.array([3]),
        reasons=[rejected.Reason.WRONG_TYPE], details=["d"], origins=["o"], payloads=[b"\xff"],
    )  # fmt: skip
    polls = [entry(3), LoggedPoll(4, {"taps": (1, 2)}, {}, b"", records), entry(5, 0)]
    log = written(tmp_path / "a" / "b", *polls)
    assert [told(found) for found in log.read(0 + 2)] == [told(one) for one in polls]
    assert [found.rejected for found in log.read(2)] == [None, records, None]
    last = log.last()
    assert last is not None
    assert told(last) == told(polls[-1])
    assert numbers(log, 4) == [5]
    assert numbers(log, 5) == []


def test_an_empty_log_has_no_polls(tmp_path: Path) -> None:
    log = PollLog(tmp_path / "none")
    assert (log.last(), numbers(log)) == (None, [])
    log.remove_before(5)


@pytest.mark.parametrize("size", [0, 40, 2_000])
def test_a_poll_that_was_being_appended_is_ignored_and_overwritten(
    size: int, tmp_path: Path
) -> None:
    """It was not sent, so its number may be given to another poll."""
    written(tmp_path, entry(1), entry(2))
    whole = only_file(tmp_path).read_bytes()
    written(tmp_path, entry(3, size))
    after = only_file(tmp_path).read_bytes()
    # Cut anywhere, and, as a file system may leave it, with zeros for the sectors from there on.
    for stop in range(len(whole), len(after)):
        torn = [after[:stop]]
        if stop % 512 == 0:
            torn.append(after[:stop].ljust(len(after), b"\0"))
        for data in torn:
            only_file(tmp_path).write_bytes(data)
            assert numbers(PollLog(tmp_path)) == [1, 2]
            log = written(tmp_path, entry(3, 7, b"y"))
            assert [told(found) for found in log.read(2)] == [told(entry(3, 7, b"y"))]


def test_a_torn_first_poll_may_have_another_number(tmp_path: Path) -> None:
    written(tmp_path, entry(4))
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    assert PollLog(tmp_path).last() is None
    assert numbers(written(tmp_path, entry(2)), 1) == [2]
    assert only_file(tmp_path).name.startswith("000000000002")


def test_any_other_damage_is_found(tmp_path: Path) -> None:
    """Also of the last poll, which may have been sent."""
    written(tmp_path, entry(1, 60), entry(2, 60))
    path = only_file(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        with pytest.raises(TidemillError, match=r"000000000001\.polls.*(--resume)"):
            numbers(PollLog(tmp_path))
    # A header of zeros before another poll was not left by a crash.
    path.write_bytes(bytes(32) + whole[32:])
    with pytest.raises(DamagedState, match="what stands at byte 0 is no poll"):
        numbers(PollLog(tmp_path))
    path.write_bytes(whole + b"what is this?")
    with pytest.raises(DamagedState, match=f"what stands at byte {len(whole):,} is no poll"):
        PollLog(tmp_path).append(entry(3))


def test_a_poll_with_sectors_of_zeros_is_whole(tmp_path: Path) -> None:
    log = written(tmp_path, entry(1), entry(2, 5_000, b"\0"))
    assert numbers(log) == [1, 2]


@pytest.mark.parametrize("wrong", [entry(2), entry(5), entry(3, 101), entry(1)])
def test_a_poll_that_is_not_the_next_one_is_refused(wrong: LoggedPoll, tmp_path: Path) -> None:
    log = written(tmp_path, entry(1), entry(2), entry(3))
    log.append(entry(3))
    with pytest.raises(BatchConflict, match=f"poll {wrong.number} was to be logged after poll 3"):
        log.append(wrong)
    assert numbers(log) == [1, 2, 3]


def test_whole_files_are_removed_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_log, "FILE_BYTES", 600)
    log = written(tmp_path, *map(entry, range(1, 10)))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3
    assert numbers(log) == list(range(1, 10))
    second = int(names[1].split(".")[0])
    log.remove_before(second - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    log.remove_before(second + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]
    assert numbers(log, second - 1) == list(range(second, 10))
    with pytest.raises(DamagedState, match=f"poll 1 is missing before poll {second}"):
        numbers(log)
    log.remove_before(100)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[-1:]
    log.append(entry(10))
    assert numbers(log, 9) == [10]


def test_a_file_in_the_middle_that_is_gone_or_cut_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_log, "FILE_BYTES", 600)
    log = written(tmp_path, *map(entry, range(1, 10)))
    middle = sorted(tmp_path.iterdir())[1]
    content = middle.read_bytes()
    middle.write_bytes(content[:-1])
    with pytest.raises(DamagedState, match=f"{middle.name}: what stands at byte"):
        numbers(log)
    middle.unlink()
    with pytest.raises(DamagedState, match="is missing before poll"):
        numbers(log)


@given(
    sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=8),
    stops=st.lists(st.integers(0, 12_000), max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_crashes_come_between_the_log_is_what_was_sent(
    sizes: list[int], stops: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A crash cuts the poll that is being appended; the writer goes on with another poll."""
    folder, sent = tmp_path_factory.mktemp("polls"), list[LoggedPoll]()
    for place, size in enumerate(sizes):
        number = len(sent) + 1
        path = max(folder.iterdir(), default=None)
        before = 0 if path is None else path.stat().st_size
        written(folder, entry(number, size))
        path = max(folder.iterdir())
        if place < len(stops) and before + stops[place] < path.stat().st_size:
            os.truncate(path, before + stops[place])
            written(folder, entry(number, size + 1, b"z"))
            sent.append(entry(number, size + 1, b"z"))
        else:
            sent.append(entry(number, size))
    assert [told(found) for found in PollLog(folder).read(0)] == [told(one) for one in sent]


class NearlyFull:
    """A file on a disk that takes so many bytes more, some at a time."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        some = data[: min(100, self._room)]
        self._room -= len(some)
        return int(self._file.write(some))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_disk_that_takes_a_part_of_a_poll_gets_the_rest(tmp_path: Path) -> None:
    log = PollLog(tmp_path)
    log.append(entry(1))
    log._file = cast(Any, NearlyFull(log._file, 100_000))
    log.append(entry(2, 2_000))
    assert [told(found) for found in PollLog(tmp_path).read(0)] == [
        told(entry(1)), told(entry(2, 2_000))
    ]  # fmt: skip


@pytest.mark.parametrize("room", [0, 20, 500])
def test_a_poll_for_which_the_disk_has_no_room_is_not_logged(room: int, tmp_path: Path) -> None:
    """It may be logged again, or another poll in its place."""
    log = PollLog(tmp_path)
    log.append(entry(1))
    log._file = cast(Any, NearlyFull(log._file, room))
    with pytest.raises(NoSpace, match=r"000000000001\.polls: the disk is full"):
        log.append(entry(2, 2_000))
    assert numbers(PollLog(tmp_path)) == [1]
    log.append(entry(2, 300, b"y"))
    log.append(entry(3))
    assert [told(found) for found in PollLog(tmp_path).read(1)] == [
        told(entry(2, 300, b"y")), told(entry(3))
    ]  # fmt: skip


def test_the_newest_timestamps_of_messages_are_logged_where_they_count(tmp_path: Path) -> None:
    log = written(tmp_path, replace(entry(1), newest_us={"taps": 77}), entry(2))
    assert [found.newest_us for found in log.read(0)] == [{"taps": 77}, {}]


WRITER = """
import sys
from pathlib import Path
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
log, number = PollLog(Path(sys.argv[1])), 0
if (last := log.last()) is not None:
    number = last.number
while True:
    number += 1
    log.append(LoggedPoll(number, {"taps": (number,)}, {}, b"%d " % number * 5_000))
    print(number, flush=True)
"""


def test_a_killed_writer_goes_on_where_it_was(tmp_path: Path) -> None:
    """What it has said that it logged is there, after each of five kills."""
    said = 0
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            first = int(writer.stdout.readline())
            assert first in (said + 1, said + 2)
            time.sleep(0.05)
            writer.send_signal(signal.SIGKILL)
            said = int((writer.stdout.read().split("\n")[:-1] or [str(first)])[-1])
        found = list(PollLog(tmp_path).read(0))
        assert [one.number for one in found] == list(range(1, len(found) + 1))
        assert len(found) in (said, said + 1)
        assert all(bytes(one.poll) == b"%d " % one.number * 5_000 for one in found)
