"""Sealing a live log: what is sealed is what was written down, whatever is killed or damaged."""

from __future__ import annotations

import copy
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.scripted_topics import PAID, PROJECT, START, Rig, ScriptedTopic, row
from tidemill import Entity, EventStream, FeatureView, Project, count
from tidemill.features.contract import SECOND, TIME_MAX
from tidemill.features.errors import DamagedFile, DamagedState, StateError, StateMismatch
from tidemill.features.rows import rejected
from tidemill.pipelines.io import log as log_module
from tidemill.pipelines.io import log_digests, log_files
from tidemill.pipelines.io.live import poll_files, poll_log, sealed_tables
from tidemill.pipelines.io.live import seal as seal_module
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.live_polls import LivePolls
from tidemill.pipelines.io.live.live_records import Sealed
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.log import Log, log_schema
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.serving.files import records
from tidemill.serving.files.atomic_write import atomic_write

BLOCK = 16


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seal in small pieces of small blocks, from small files; nothing here loses its power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for module in (log_module, log_files, log_digests, seal_module):
        monkeypatch.setattr(module, "BLOCK_ROWS", BLOCK)
    monkeypatch.setattr(seal_module, "_SEALED_BYTES", 12_000)
    monkeypatch.setattr(poll_files, "_GROWS_TO_BYTES", 0)
    monkeypatch.setattr(poll_log, "FILE_BYTES", 15_000)


def lived(folder: Path, polls: int = 30, files: int = 1, seed: int = 1) -> Rig:
    """Return a live stream that has written polls down, with rejected records in some."""
    rig = Rig(
        folder, ScriptedTopic(3, first=7), ScriptedTopic(1), files=files, file_rows=5
    )  # fmt: skip
    chance = random.Random(seed)
    goes_on(rig, polls, chance)
    return rig


def goes_on(rig: Rig, polls: int, chance: random.Random) -> None:
    before = rig.reader.number
    for number in range(before, before + polls):
        for partition in range(3):
            for n in range(chance.randrange(5)):
                name = f"{number}-{partition}-{n}"
                at = rig.now_us - chance.randrange(6 * SECOND)
                amount = chance.choice([1.5, -0.0, float(n)])
                more: dict[str, Any] = chance.choice([{}, {"card": None}, {"card": "ü" * n}])
                rig.paid.send(row(name, at, amount, **more), partition=partition)
            if chance.random() < 0.15:
                rig.paid.send(chance.choice([b"{", None, b"[1,2]"]), partition=partition)
        rig.paid.skip(1, partition=chance.randrange(3))
        if chance.random() < 0.5:
            rig.asked.send(row(f"q{chance.randrange(40)}", rig.now_us))
        assert rig.step(0.3) is not None


def sealed_polls(rig: Rig, start_us: int = 0, stop_us: int = TIME_MAX) -> LivePolls:
    live = LiveLog(rig.folder / "live", PROJECT)
    log = Log(rig.build, rig.folder / "live")
    return LivePolls(PROJECT, log, live, start_us=start_us, stop_us=stop_us)


def check(rig: Rig, expected: list[LoggedPoll], *, polls: LivePolls | None = None) -> None:
    """Check that the sealed polls are those that were written down."""
    found = sealed_polls(rig) if polls is None else polls
    at, first = found.start, found.before
    for logged in expected[first:]:
        sent = Poll.decode(bytes(logged.poll))
        again = found.next_poll(at, TIME_MAX, sent.sent_us)
        if again is None:
            assert logged.number > found.before + found.last_poll_number
            return
        poll, at = again
        assert at.number == poll.number == logged.number - first
        assert replace(poll, number=logged.number) == sent
        assert canonical(replace(poll, number=logged.number)) == canonical(sent)
        refused = [] if logged.rejected is None else [logged.rejected]
        assert found.rejected(poll.number) == refused
    assert found.next_poll(at, TIME_MAX, 0) is None


def canonical(poll: Poll) -> bytes:
    """Return the bytes of a poll, whatever parts of larger arrays its rows are."""
    parts = [
        part if part.rows is None else replace(part, rows=part.rows.take(range_of(part.rows)))
        for part in poll.parts
    ]
    return replace(poll, parts=tuple(parts)).encode()


def range_of(rows: pa.RecordBatch) -> pa.Array:
    return pa.array(np.arange(rows.num_rows))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- what is sealed --------------------------------------------------------------------------


@pytest.mark.parametrize("files", [0, 2])
def test_what_is_sealed_is_what_was_written_down(tmp_path: Path, files: int) -> None:
    rig = lived(tmp_path, files=files)
    expected = rig.logged()
    sealed = rig.live.seal(rig.build, TIME_MAX)
    assert sealed == LiveLog(tmp_path / "live", PROJECT).sealed()
    assert sealed.number == 30
    assert {name: tuple(offsets) for name, offsets in sealed.offsets.items()} == dict(
        expected[-1].offsets
    )
    assert len(list((tmp_path / "live" / "cuts").iterdir())) > 3
    check(rig, expected)
    cuts = rig.live.cuts()
    assert cuts.number.tolist() == list(range(1, 31))
    assert (np.diff(cuts.received_us) > 0).all()
    assert cuts.positions["paid"][-1].tolist() == list(sealed.positions["paid"])
    lengths = rig.log.lengths("paid")
    assert lengths == [5] * files + list(sealed.positions["paid"])
    assert max(lengths) > 2 * BLOCK
    found = list(rig.live.rejected(0, 30))
    assert [(number, batch) for number, batch in found] == [
        (one.number, one.rejected) for one in expected if one.rejected is not None
    ]
    some = list(rig.live.rejected(found[1][0], found[-2][0]))
    assert some == found[2:-1]


def test_a_log_that_is_sealed_at_every_few_polls_is_that_of_one_seal(tmp_path: Path) -> None:
    once, often = lived(tmp_path / "once"), lived(tmp_path / "often", polls=2)
    chance = random.Random(1)
    goes_on(lived(tmp_path / "lost", polls=0), 2, chance)
    for _ in range(7):
        often.live.seal(often.build, TIME_MAX)
        often.restarted()
        goes_on(often, 4, chance)
    assert often.live.seal(often.build, TIME_MAX) == once.live.seal(once.build, TIME_MAX)
    for name in ("paid", "asked"):
        assert often.log.read(name) == once.log.read(name)
        assert [often.log.digests(name, n) for n in range(often.log.partitions(name))] == [
            once.log.digests(name, n) for n in range(once.log.partitions(name))
        ]
    for field in ("number", "received_us"):
        assert (getattr(often.live.cuts(), field) == getattr(once.live.cuts(), field)).all()
    for kind in ("positions", "watermarks"):
        pair = [getattr(rig.live.cuts(), kind)["paid"] for rig in (often, once)]
        assert (pair[0] == pair[1]).all()
    assert list(often.live.rejected(0, 30)) == list(once.live.rejected(0, 30))


def test_only_polls_received_before_an_instant_are_sealed(tmp_path: Path) -> None:
    rig = lived(tmp_path)
    expected = rig.logged()
    received = [poll.sent_us for poll in rig.polls()]
    assert rig.live.seal(rig.build, received[0]).number == 0
    assert rig.live.seal(rig.build, received[11]).number == 11
    # The polls that are not sealed stay.
    rest = list(PollLog(tmp_path / "live" / "polls").read(11))
    assert [one.encode() for one in rest] == [one.encode() for one in expected[11:]]
    check(rig, expected)
    assert rig.live.seal(rig.build, received[11] + 1).number == 12
    assert rig.live.seal(rig.build, TIME_MAX).number == 30
    assert rig.live.seal(rig.build, TIME_MAX).number == 30
    check(rig, expected)


def test_files_of_polls_are_removed_once_they_are_sealed(tmp_path: Path) -> None:
    rig = lived(tmp_path)
    polls = tmp_path / "live" / "polls"
    before = sorted(path.name for path in polls.iterdir())
    assert len(before) > 3
    rig.live.seal(rig.build, TIME_MAX)
    assert [path.name for path in polls.iterdir()] == before[-1:]
    rig.restarted()
    goes_on(rig, 1, random.Random(2))
    assert rig.logged(after=30)[-1].number == 31


def test_a_log_of_no_polls_is_sealed(tmp_path: Path) -> None:
    rig = lived(tmp_path, polls=0)
    sealed = rig.live.seal(rig.build, TIME_MAX)
    assert (sealed.number, sealed.positions["paid"], sealed.offsets["paid"]) == (
        0, [0, 0, 0], [7, 7, 7]
    )  # fmt: skip
    cuts = rig.live.cuts()
    assert cuts.positions["paid"].shape == cuts.watermarks["paid"].shape == (0, 3)
    check(rig, [])
    assert list(rig.live.rejected(0, 10)) == []


def test_thousands_of_polls_without_rows_are_sealed(tmp_path: Path) -> None:
    rig = lived(tmp_path, polls=2)
    log = PollLog(tmp_path / "live" / "polls")
    last = log.last()
    assert last is not None
    poll = Poll.decode(bytes(last.poll))
    parts = tuple(replace(part, start=part.stop, rows=None) for part in poll.parts)
    for number in range(3, 3_003):
        sent = Poll(number, poll.sent_us + number, parts)
        log.append(replace(last, number=number, poll=sent.encode(), rejected=None))
    log.close()
    expected = rig.logged()
    sealed = rig.live.seal(rig.build, TIME_MAX)
    assert sealed.number == 3_002
    assert len(sealed_polls(rig).stop) == len(poll.parts)
    assert sealed_polls(rig).stop == tuple(part.stop for part in poll.parts)
    check(rig, expected[:40], polls=sealed_polls(rig, stop_us=poll.sent_us + 41))


def many_polls(rig: Rig, polls: int, every: int) -> None:
    """Write sealed cuts of very many polls, one of each few with a rejected record."""
    numbers = np.arange(1, polls + 1)
    columns = {"number": numbers, "received_us": START + numbers}
    for name, partitions in (("asked", 1), ("paid", 3)):
        for n in range(partitions):
            columns[f"position/{name}/{n}"] = np.zeros(polls, np.int64)
            columns[f"watermark/{name}/{n}"] = START + numbers
            columns[f"offset/{name}/{n}"] = numbers
    record = rejected.batch(
        rejected.Stage.READ, stream="paid", partition=0, positions=np.array([1]),
        reasons=[rejected.Reason.BROKEN_JSON], details=["d"], origins=["o"], payloads=[b"{" * 100],
    )  # fmt: skip
    table = pa.table({name: pa.array(found) for name, found in columns.items()})
    for first in range(0, polls, 1_000):
        rig.live.files("cuts").write(first + 1, table.slice(first, 1_000))
        with_records = range(first + 1, first + 1_001, every)
        refused = pa.Table.from_batches([record] * len(with_records))
        refused = refused.append_column("_poll", pa.array(with_records, pa.int64()))
        rig.live.files("rejected").write(first + 1, refused)
    offsets = {"asked": [polls], "paid": [polls] * 3}
    positions = {"asked": [0], "paid": [0] * 3}
    rig.live.write_sealed(Sealed(polls, positions, offsets))


def test_the_sealed_polls_of_days_are_read_without_reading_all_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,000 polls, 20,000 of them with rejected records: seconds, not hours."""
    rig = lived(tmp_path, polls=0)
    many_polls(rig, 100_000, every=5)
    reads = 0
    read = poll_files.read_table

    def counted(path: Path) -> pa.Table:
        nonlocal reads
        reads += 1
        return read(path)

    began = time.process_time()
    polls = LivePolls(PROJECT, rig.log, rig.live, start_us=0, stop_us=TIME_MAX)
    assert polls.last_poll_number == 100_000
    monkeypatch.setattr(poll_files, "read_table", counted)
    assert sum(len(polls.rejected(number)) for number in range(1, 100_001)) == 20_000
    assert reads == 100
    assert polls.rejected(6)[0].num_rows == 1  # an earlier one again
    assert polls.rejected(6)[0].num_rows == 1
    assert polls.rejected(7) == []
    assert reads == 101
    at = polls.start
    for _ in range(1_000):
        found = polls.next_poll(at, TIME_MAX, 0)
        assert found is not None
        at = found[1]
    assert time.process_time() - began < 30


def test_a_topic_of_many_partitions_is_sealed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ScriptedTopic(40), ScriptedTopic(1))
    for _ in range(3):
        for partition in range(40):
            rig.paid.send(row(f"p{partition}", START), partition=partition)
        rig.step(1.0)
    expected = rig.logged()
    rig.live.seal(rig.build, TIME_MAX)
    check(rig, expected)


def test_a_source_may_be_named_like_a_folder_of_the_log(tmp_path: Path) -> None:
    for name in ("cuts", "polls", "rejected", "rows"):
        stream = replace(PAID, name=name)
        view = FeatureView("view", Entity("card"), stream, "1m", {"n_1h": count(over="1h")})
        project = Project("live", PROJECT.request, [view])
        folder = tmp_path / name
        log = Log(folder / "build")
        for definition in (stream, project.request):
            rows = log_schema(definition).empty_table()
            log.write(definition, 0, rows, np.zeros(0, np.int64))
        live = LiveLog(folder / "live", project)
        live.begin({name: LiveTopic("t", 0, (0,))})
        one = rows_of(stream, 3)
        poll = Poll(1, START, (PollPart(name, 0, 0, 3, START, one), asked_part()))
        live.polls.append(LoggedPoll(1, {name: (3,)}, {name: (START,)}, poll.encode()))
        live.seal(folder / "build", TIME_MAX)
        found = LivePolls(
            project, Log(folder / "build", folder / "live"), live, start_us=0, stop_us=TIME_MAX
        )
        again = found.next_poll(found.start, TIME_MAX, START)
        assert again is not None
        assert again[0].parts[0].rows == one


def asked_part() -> PollPart:
    return PollPart("asked", 0, 0, 0, TIME_MAX, None)


def rows_of(definition: EventStream, rows: int) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        "id": [f"{n}" for n in range(rows)], "at": [START] * rows, "sent_at": [START] * rows,
        "card": ["c"] * rows, "amount": [1.0] * rows, "_position": list(range(rows)),
        "_received": [START] * rows,
    }  # fmt: skip
    schema = log_schema(definition)
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[field.name], field.type) for field in schema], schema=schema
    )


# --- kills -----------------------------------------------------------------------------------


class Killed(BaseException):
    """A kill."""


@contextmanager
def killed_at(number: int, *, after: bool) -> Iterator[list[int]]:
    """Raise at a write, counted from 0: before the file has its name, or after."""
    done = [0]
    real = atomic_write

    @contextmanager
    def killing(path: Path, **options: Any) -> Iterator[Path]:
        done[0] += 1
        with real(path, **options) as unfinished:
            yield unfinished
            if done[0] == number + 1 and not after:
                raise Killed
        if done[0] == number + 1:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        for module in (log_files, sealed_tables, records):
            patched.setattr(module, "atomic_write", killing)
        yield done


@pytest.mark.parametrize("grows_to", [0, 2_000, 1 << 20])
def test_a_seal_that_is_killed_anywhere_is_repeated_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows_to: int
) -> None:
    monkeypatch.setattr(poll_files, "_GROWS_TO_BYTES", grows_to)
    rig = lived(tmp_path / "live", polls=9)
    expected = rig.logged()
    whole = tmp_path / "whole"
    shutil.copytree(rig.folder, whole)
    with killed_at(10**9, after=False) as writes:
        LiveLog(whole / "live", PROJECT).seal(whole / "build", TIME_MAX)
    wanted, count_of_writes = content(whole), writes[0]
    assert count_of_writes > 12
    for number in range(count_of_writes):
        for after in (False, True):
            folder = tmp_path / "killed"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(rig.folder, folder)
            copied = copy.copy(rig)
            copied.folder, copied.build = folder, folder / "build"
            with killed_at(number, after=after), pytest.raises(Killed):
                LiveLog(folder / "live", PROJECT).seal(folder / "build", TIME_MAX)
            # What was sealed before it is read meanwhile.
            check(copied, expected)
            # Another seal may end earlier than the killed one, and one that goes on follows.
            middle_us = Poll.decode(bytes(expected[6].poll)).sent_us
            if number % 3 == 0:
                LiveLog(folder / "live", PROJECT).seal(folder / "build", middle_us)
                check(copied, expected)
            LiveLog(folder / "live", PROJECT).seal(folder / "build", TIME_MAX)
            check(copied, expected)
            if number % 3 and not grows_to:
                assert content(folder) == wanted


def test_many_small_seals_leave_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_files, "_GROWS_TO_BYTES", 6_000)
    rig = lived(tmp_path, polls=30)
    expected = rig.logged()
    for poll in expected:
        sealed = rig.live.seal(rig.build, until=poll.number)
        assert sealed.number == poll.number
        sent_us = Poll.decode(bytes(poll.poll)).sent_us
        assert rig.live.received_us(poll.number) == sent_us
        assert rig.live.cuts().received_us[-1] == sent_us
    check(rig, expected)
    assert 1 < len(list((tmp_path / "live" / "cuts").iterdir())) < 8
    with pytest.raises(DamagedState, match="has no poll 31"):
        rig.live.received_us(31)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topics", "says"),
    [
        ({"paid": LiveTopic("other", 1, (7, 7, 7))}, "'paid' was begun with topic 'paid' of 3 p"),
        ({"paid": LiveTopic("paid", 1, (7, 7))}, "and now there is topic 'paid' of 2 partitions"),
        ({"paid": LiveTopic("paid", 2, (7, 7, 7))}, "after 2 of files"),
        ({"paid": None}, "now there is no topic"),
        ({"third": LiveTopic("third", 0, (0,))}, "'third' was begun with no topic"),
    ],
)
def test_other_topics_than_at_the_beginning_are_refused(
    tmp_path: Path, topics: dict[str, LiveTopic | None], says: str
) -> None:
    rig = lived(tmp_path, polls=1)
    now = {**rig.live.topics(), **topics}
    given = {name: topic for name, topic in now.items() if topic is not None}
    with pytest.raises(StateMismatch, match=says):
        rig.live.begin(given)
    rig.live.begin(rig.live.topics())
    # Where reading began is what it was, whatever a later build would begin with.
    rig.live.begin({**rig.live.topics(), "paid": LiveTopic("paid", 1, (9, 9, 9))})
    assert rig.live.topics()["paid"].offsets == (7, 7, 7)


@pytest.mark.parametrize("name", ["topics.json", "sealed.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", None])
def test_a_damaged_record_is_an_error_that_names_it(
    tmp_path: Path, name: str, damage: bytes | None
) -> None:
    rig = lived(tmp_path, polls=3)
    rig.live.seal(rig.build, TIME_MAX)
    path = tmp_path / "live" / name
    path.write_bytes(path.read_bytes().replace(b"7", b"8") if damage is None else damage)
    with pytest.raises(StateError, match=f"{name}.*restore the file from a copy"):
        sealed_polls(rig)


@pytest.mark.parametrize("kind", ["cuts", "rejected"])
def test_a_damaged_file_of_polls_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    rig = lived(tmp_path)
    rig.live.seal(rig.build, TIME_MAX)
    path = sorted((tmp_path / "live" / kind).iterdir())[1]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DamagedFile, match=f"{path.name} is damaged"):
        ask_for_all(rig)


@pytest.mark.parametrize("kind", ["cuts", "rejected"])
def test_any_changed_byte_of_a_file_of_polls_is_an_error(tmp_path: Path, kind: str) -> None:
    rig = lived(tmp_path)
    # The places of the digest are not told by what a message holds.
    rig.paid.send(b"0" * 64)
    rig.step(1.0)
    rig.live.seal(rig.build, TIME_MAX)
    path = max((tmp_path / "live" / kind).iterdir())
    whole, rows = path.read_bytes(), poll_files.read_table(path)
    assert rows.schema.metadata is None
    assert kind == "cuts" or any(b"0" * 64 in one for one in rows["payload"].to_pylist())
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DamagedFile, match=f"{path.name} is damaged"):
            poll_files.read_table(path)
    for content in (whole[: len(whole) // 2], whole + b"\0", b""):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=f"{path.name} is damaged"):
            poll_files.read_table(path)
    # An earlier version wrote no digest.
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    assert poll_files.read_table(path).equals(rows)


def test_a_record_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    rig = lived(tmp_path, polls=3)
    rig.live.seal(rig.build, TIME_MAX)
    topics, sealed = (tmp_path / "live" / f"{name}.json" for name in ("topics", "sealed"))
    whole = sealed.read_bytes()
    sealed.unlink()
    with pytest.raises(DamagedState, match=r"sealed.json is gone.*restore the file"):
        rig.live.seal(rig.build, TIME_MAX)
    sealed.write_bytes(whole)
    topics.unlink()
    with pytest.raises(DamagedState, match=r"topics.json is gone.*restore the file"):
        sealed_polls(rig)
    with pytest.raises(DamagedState, match=r"topics.json is gone"):
        assert rig.live.exists


def ask_for_all(rig: Rig) -> None:
    """Ask for the rejected records of every sealed poll."""
    polls = sealed_polls(rig)
    for number in range(1, polls.last_poll_number + 1):
        polls.rejected(number)


def test_a_file_of_cuts_that_is_gone_is_found(tmp_path: Path) -> None:
    rig = lived(tmp_path)
    rig.live.seal(rig.build, TIME_MAX)
    paths = sorted((tmp_path / "live" / "cuts").iterdir())
    for path in (paths[0], paths[1], paths[-1]):
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(StateMismatch, match="has not the polls 1 to 30 once each"):
            rig.live.cuts()
        path.write_bytes(data)
    for path in paths:
        path.unlink()
    with pytest.raises(StateMismatch, match="has not the polls 1 to 30 once each"):
        rig.live.cuts()


def test_live_rows_that_are_gone_are_found(tmp_path: Path) -> None:
    """Also the last file of a partition, which no later file misses."""
    rig = lived(tmp_path)
    rig.live.seal(rig.build, TIME_MAX)
    rig.restarted()
    goes_on(rig, 2, random.Random(3))
    last = max((tmp_path / "live" / "rows" / "paid").glob("00001-*"))
    last.unlink()
    with pytest.raises(
        DamagedFile, match=r"partition 1 of 'paid' has \d+ rows, and \d+ are sealed"
    ):
        sealed_polls(rig)
    with pytest.raises(DamagedFile, match=r"partition 1 has \d+ rows, and \d+ are sealed: rows"):
        rig.live.seal(rig.build, TIME_MAX)


def test_polls_that_are_gone_are_found(tmp_path: Path) -> None:
    """A reader that began at poll 1 again would write polls that nobody reads."""
    rig = lived(tmp_path)
    rig.live.seal(rig.build, TIME_MAX)
    shutil.rmtree(tmp_path / "live" / "polls")
    with pytest.raises(
        DamagedState, match="the last poll is 0, and 30 are sealed: polls were lost"
    ):
        rig.live.seal(rig.build, TIME_MAX)


def test_a_poll_log_that_lacks_unsealed_polls_is_refused(tmp_path: Path) -> None:
    rig = lived(tmp_path)
    min((tmp_path / "live" / "polls").iterdir()).unlink()
    with pytest.raises(DamagedState, match="poll 1 is missing"):
        rig.live.seal(rig.build, TIME_MAX)
