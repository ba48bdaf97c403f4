"""A program and its workers over an exchange, in one process: what is told, once and in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from tidemill.features.errors import DamagedState, EngineLost, ExchangeUnreachable, NoSpace
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.exchange import hearing, journal, left, sent_polls
from tidemill.pipelines.io.exchange.journal import BLOCK, name_of
from tidemill.pipelines.io.exchange.left import remove_left
from tidemill.pipelines.io.exchange.names import UP, Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.program_end import ProgramEnd, exchange
from tidemill.pipelines.io.exchange.sealed import Entry, sealed, told
from tidemill.pipelines.io.exchange.worker_end import WorkerEnd
from tidemill.pipelines.io.poll import Poll, PollPart

WAIT_S = 60.0


@dataclass
class Meeting:
    """A program's end, and what it was told of polls that were taken."""

    root: Path
    url: str
    taken: dict[str, int] = field(default_factory=dict)

    def open(self, job: str = "job") -> Any:
        return exchange(
            self.url,
            self.root,
            "root-id",
            [self.root / "a", self.root / "b"],
            self.taken.__setitem__,
            lambda *_: None,
            job,
        )


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    root = tmp_path / "root"
    root.mkdir()
    return Meeting(root, f"file://{tmp_path}/exchange")


@pytest.fixture
def worker() -> Iterator[Callable[[ProgramEnd], WorkerEnd]]:
    """Make workers."""
    made: list[WorkerEnd] = []

    def make(program: ProgramEnd) -> WorkerEnd:
        made.append(WorkerEnd(program.place))
        return made[-1]

    yield make
    for one in made:
        one.close()


def wait(is_so: Callable[[], object], program: ProgramEnd | None = None) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        if program is not None:
            program.check()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def put(program: ProgramEnd, name: str, *entries: Entry) -> None:
    """Write an object as whoever may write to the storage can."""
    objects = Objects(program.place.url)
    objects.put(name, *sealed(objects.place(name), entries))


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(str)
class Keep(beam.DoFn):
    """Keeps bundles."""

    def __init__(self, error: Exception | None = None) -> None:
        self.said: list[Any] = []
        self._error = error

    def setup(self) -> None:
        self.said.append("setup")

    def start_bundle(self) -> None:
        self.bundle: list[bytes] = []

    def process(self, element: bytes) -> None:
        if self._error is not None:
            raise self._error
        self.bundle.append(element)

    def finish_bundle(self) -> None:
        self.said.append(self.bundle)

    def teardown(self) -> None:
        self.said.append("teardown")


def test_what_workers_hand_over_comes_once_and_in_the_order_of_each(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    kept = Keep()
    with meeting.open() as program:
        program.step("keep", kept)
        program.take()
        one, other = worker(program), worker(program)
        for number in range(200):
            one.hand_over("keep", [b"one", b"%d" % number])
            other.hand_over("keep", [b"other", b"%d" % number])
        wait(lambda: len(kept.said) == 401, program)
    assert (kept.said[0], kept.said[-1]) == ("setup", "teardown")
    for name in (b"one", b"other"):
        numbers = [int(found[1]) for found in kept.said[1:-1] if found[0] == name]
        assert numbers == list(range(200))


def test_files_of_workers_are_written_below_the_root(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    with meeting.open() as program:
        program.take()
        one = worker(program)
        one.write(meeting.root / "a" / "base", b"0123")
        one.link(meeting.root / "a" / "base", meeting.root / "b" / "base")
        one.write(meeting.root / "a" / "base", b"4567")
        wait((meeting.root / "b" / "base").exists, program)
        wait(lambda: (meeting.root / "a" / "base").read_bytes() == b"4567", program)
        assert (meeting.root / "b" / "base").read_bytes() == b"0123"
        with pytest.raises(ValueError, match="subpath"):
            one.write(meeting.root.parent / "elsewhere", b"")


@pytest.mark.parametrize("path", ["../elsewhere", "CURRENT", "a/../CURRENT", "/tmp/elsewhere"])
def test_nobody_writes_where_workers_do_not(meeting: Meeting, path: str) -> None:
    with meeting.open() as program:
        evil = told(Told.FILE, {"path": path}, [b"evil"])
        put(program, f"{UP}/enemy/{name_of(0)}", evil)
        program.take()
        with pytest.raises(DamagedState, match="is not where it writes"):
            wait(lambda: False, program)
    assert not (meeting.root / path).exists()


def test_a_step_that_there_is_not_is_an_error(meeting: Meeting) -> None:
    with meeting.open() as program:
        evil = told(Told.ELEMENTS, {"step": "other"}, [b"evil"])
        put(program, f"{UP}/enemy/{name_of(0)}", evil)
        program.take()
        with pytest.raises(DamagedState, match="no step 'other'"):
            wait(lambda: False, program)


@pytest.mark.parametrize("data", [b"no frame", b"\x80\x04pickle", b"\x89TMILL\r\n" + bytes(40)])
def test_what_is_no_journal_ends_the_job(meeting: Meeting, data: bytes) -> None:
    with meeting.open() as program:
        Objects(program.place.url).put(f"{UP}/enemy/{name_of(0)}", data)
        program.take()
        with pytest.raises(DamagedState):
            wait(lambda: False, program)


def test_what_the_program_gives_is_read_by_workers(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    folder = meeting.root / "bundle" / "deep"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"a" * 1_000)
    (folder / "empty").write_bytes(b"")
    states = meeting.root / "states"
    states.mkdir()
    (states / "one.state").write_bytes(b"state")
    with meeting.open() as program:
        program.give(meeting.root / "bundle")
        program.give(states)
        one = worker(program)
        found = one.read(states / "one.state")
        assert found is not None
        assert found.to_pybytes() == b"state"
        assert one.read(states / "other.state") is None
        copy = one.folder(meeting.root / "bundle")
        assert copy == one.folder(meeting.root / "bundle")
        assert copy.name == "bundle"
        assert (copy / "deep" / "a").read_bytes() == b"a" * 1_000
        assert (copy / "deep" / "empty").read_bytes() == b""
    one.close()
    assert not copy.exists()


class Numbered:
    """Polls up to a number, and the last one."""

    def __init__(self, until: int) -> None:
        self._until = until

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        number = at.number + 1
        if number > self._until:
            return None
        rows = pa.RecordBatch.from_pydict({"n": [number]})
        part = PollPart("source", 0, number - 1, number, number, rows)
        return Poll(number, 0, (part,)), [rows] if number % 2 else []

    def last(self, at: Cut) -> Poll | None:
        return Poll(at.number, 0, (), is_last=True) if at.number == self._until else None


def sent(one: WorkerEnd, until: int) -> Iterator[tuple[Poll, Sequence[pa.RecordBatch]]]:
    at, polls = Cut(0, (0,)), one.polls()
    while at.number < until:
        found = polls.next(at)
        if found is None:
            polls.check()
            time.sleep(0.001)
            continue
        yield found
        at = Cut(found[0].number, (found[0].number,))


def test_polls_come_in_order_then_the_last_one(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    with meeting.open() as program:
        program.take()
        program.send(Numbered(500), Cut(0, (0,)))
        one = worker(program)
        one.report(lambda: 77)
        found = list(sent(one, 500))
        assert [poll.number for poll, _ in found] == list(range(1, 501))
        assert [len(refused) for _, refused in found] == [1, 0] * 250
        polls, at = one.polls(), Cut(500, (500,))
        wait(lambda: polls.next(at) or polls.last(at))
        assert polls.next(at) is None
        last = polls.last(at)
        assert last is not None
        assert last.is_last
        wait(lambda: meeting.taken.get(one.name) == 77, program)
        one.report(lambda: 78)
        wait(lambda: meeting.taken.get(one.name) == 78, program)


def test_what_was_read_is_removed(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "BEAT_S", 0.005)
    with meeting.open() as program:
        program.take()
        one, objects = worker(program), Objects(program.place.url)
        polls = one.polls()

        def many_were_read_and_few_are_there() -> bool:
            for _ in range(BLOCK):
                polls.check()
            return polls.objects_read > 5 * BLOCK and len(objects.names()) < 4 * BLOCK

        wait(many_were_read_and_few_are_there, program)


def test_a_source_that_begins_again_ends_the_job(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    with meeting.open() as program:
        program.take()
        program.send(Numbered(5), Cut(0, (0,)))
        one, other = worker(program), worker(program)
        assert len(list(sent(one, 5))) == 5
        other.polls()
        with pytest.raises(EngineLost, match="restarted the source"):
            wait(lambda: False, program)


def test_a_source_that_goes_back_is_refused(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    with meeting.open() as program:
        program.send(Numbered(5), Cut(0, (0,)))
        one = worker(program)
        assert len(list(sent(one, 3))) == 3
        with pytest.raises(EngineLost, match="restarted the source after poll 1"):
            wait(lambda: one.polls().next(Cut(1, (1,))))


def test_an_error_of_a_step_of_the_program_is_raised(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    with meeting.open() as program:
        program.step("keep", Keep(NoSpace("the disk is full")))
        program.take()
        worker(program).hand_over("keep", [b""])
        with pytest.raises(NoSpace, match="the disk is full"):
            wait(lambda: False, program)


def test_what_another_job_tells_is_not_read_and_is_removed_by_the_next(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with meeting.open("first") as program:
        before = worker(program)
        before.join()
    kept = Keep()
    with meeting.open("second") as program:
        program.step("keep", kept)
        program.take()
        before.hand_over("keep", [b"late"])
        before.write(meeting.root / "a" / "late", b"")
        before.flush()
        worker(program).hand_over("keep", [b"now"])
        wait(lambda: len(kept.said) == 2, program)
    assert kept.said[1] == [b"now"]
    assert not (meeting.root / "a" / "late").exists()
    there = Objects(f"{meeting.url}/root-id")
    assert {name.split("/")[0] for name in there.names()} == {"first"}
    monkeypatch.setattr(left, "_SILENT_S", 0.2)
    with meeting.open("third"):
        wait(lambda: {name.split("/")[0] for name in there.names()} <= {"third"})
    before.hand_over("keep", [b"later"])
    before.flush()
    assert there.names()
    remove_left(meeting.url, "other-root")
    assert there.names()
    remove_left(meeting.url, "root-id")
    assert not there.names()


def test_whoever_tells_nothing_for_long_is_lost(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (hearing, sent_polls):
        monkeypatch.setattr(module, "SILENT_S", 1.0)
    monkeypatch.setattr(journal, "BEAT_S", 0.1)
    with meeting.open() as program:
        program.take()
        one, other = worker(program), worker(program)
        other.join()
        polls = one.polls()
        before = time.monotonic()
        while time.monotonic() < before + 2:
            program.check()
            polls.check()
            time.sleep(0.01)
        other.close()
        with pytest.raises(EngineLost, match=f"{other.name} has told nothing"):
            wait(lambda: False, program)
    with pytest.raises(EngineLost, match="the program that submitted the job has told nothing"):
        wait(polls.check)


def test_a_storage_that_is_away_for_a_while_stops_nothing(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_away = threading.Event()
    for name in ("put", "get", "names"):
        real = getattr(Objects, name)

        def away(self: Objects, *given: Any, real: Any = real) -> Any:
            if is_away.is_set():
                raise ExchangeUnreachable("away")
            return real(self, *given)

        monkeypatch.setattr(Objects, name, away)
    monkeypatch.setattr(journal, "_AGAIN_S", 0.05)
    kept = Keep()
    with meeting.open() as program:
        program.step("keep", kept)
        program.take()
        program.send(Numbered(50), Cut(0, (0,)))
        one = worker(program)
        for number in range(50):
            (is_away.set if number % 7 == 3 else is_away.clear)()
            one.hand_over("keep", [b"%d" % number])
            time.sleep(0.02)
        is_away.clear()
        assert len(list(sent(one, 50))) == 50
        wait(lambda: len(kept.said) == 51, program)
    assert [found[0] for found in kept.said[1:-1]] == [b"%d" % number for number in range(50)]


def test_a_storage_that_stays_away_is_an_error_of_both(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "_AGAIN_S", 0.05)
    with meeting.open() as program:
        program.take()
        one = worker(program)
        one.join()
        monkeypatch.setattr(journal, "PATIENCE_S", 0.3)

        def away(self: Objects, *_: Any) -> Any:
            raise ExchangeUnreachable("the exchange is away")

        for name in ("put", "get", "names", "remove_folder"):
            monkeypatch.setattr(Objects, name, away)
        with pytest.raises(ExchangeUnreachable, match="is away"):
            wait(lambda: False, program)
        one.write(meeting.root / "a", b"")
        with pytest.raises(ExchangeUnreachable, match="is away"):
            one.flush()


def test_a_storage_that_does_not_give_back_what_was_written_is_refused_at_once(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objects, "names", lambda *_: [])
    with pytest.raises(ExchangeUnreachable, match="does not give back"), meeting.open():
        pass


# What an enemy or an accident does to objects.


def hand_over_three(meeting: Meeting, program: ProgramEnd, one: WorkerEnd) -> list[Path]:
    """Let a worker write three objects; return their files."""
    for number in range(3):
        one.hand_over("keep", [b"%d" % number])
        one.flush()
    one.close()
    place = Path(program.place.url.removeprefix("file://"))
    return sorted((place / UP / one.name).rglob("0*0*[0-9]"))[-3:]


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda files: files[1].write_bytes(files[1].read_bytes()[:-9]), "cut short"),
        (lambda files: files[1].write_bytes(b""), "was not written by Tidemill"),
        (lambda files: files[1].write_bytes(files[0].read_bytes()), "somebody has put there"),
        (lambda files: files[1].write_bytes(files[1].read_bytes()[: -beat()]), "cut short"),
        (lambda files: files[1].write_bytes(files[1].read_bytes() * 2), "added to"),
        (lambda files: flip(files[1]), "its checksum does not match"),
        (lambda files: files[1].unlink(), "was removed, and not by Tidemill"),
    ],
    ids=["truncated", "emptied", "older", "cut at an entry", "doubled", "changed", "deleted"],
)
def test_an_object_that_is_not_what_was_written_ends_the_job_by_name(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    do: Callable[[list[Path]], object],
    said: str,
) -> None:
    kept = Keep()
    with meeting.open() as program:
        program.step("keep", kept)
        files = hand_over_three(meeting, program, worker(program))
        assert len(files) == 3
        do(files)
        program.take()
        with pytest.raises(DamagedState, match=said) as error:
            wait(lambda: False, program)
    assert "let nobody, and run the command again (a stream with --resume)" in str(error.value)
    assert [b"2"] not in kept.said


def beat() -> int:
    """The bytes of a worker's last entry of an object."""
    return len(b"".join(told(Told.BEAT, {"taken": 0, "read": None})))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-beat() - 8] ^= 1
    path.write_bytes(data)


def test_what_is_done_to_an_object_that_was_read_is_harmless(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    kept = Keep()
    with meeting.open() as program:
        program.step("keep", kept)
        program.take()
        one = worker(program)
        one.hand_over("keep", [b"0"])
        wait(lambda: len(kept.said) == 2, program)
        place = Path(program.place.url.removeprefix("file://")) / UP / one.name
        first = place / name_of(0)
        flip(first)
        one.hand_over("keep", [b"1"])
        wait(lambda: len(kept.said) == 3, program)
        first.unlink()
        one.hand_over("keep", [b"2"])
        wait(lambda: len(kept.said) == 4, program)
    assert kept.said[1:4] == [[b"0"], [b"1"], [b"2"]]


def test_a_poll_that_was_removed_or_replaced_ends_the_source_by_name(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sent_polls, "_DOUBT_S", 0.2)
    for name, do, said in (
        ("removed", lambda files: files[1].unlink(), "was removed"),
        ("older", lambda files: files[1].write_bytes(files[0].read_bytes()), "has put there"),
    ):
        monkeypatch.setattr(journal, "BEAT_S", 0.05)
        with meeting.open(name) as program:
            folder = Path(program.place.url.removeprefix("file://")) / "down"
            wait((folder / name_of(2)).exists, program)
            do([folder / name_of(number) for number in range(2)])
            polls = worker(program).polls()
            with pytest.raises(DamagedState, match=said):
                wait(lambda polls=polls: polls.check())


def test_given_files_that_were_removed_or_replaced_are_named(
    meeting: Meeting, worker: Callable[[ProgramEnd], WorkerEnd]
) -> None:
    states = meeting.root / "states"
    states.mkdir()
    for name in ("a", "b", "c"):
        (states / name).write_bytes(name.encode())
    with meeting.open() as program:
        program.give(states)
        there = Path(program.place.url.removeprefix("file://")) / "files" / "states"
        (there / "a").unlink()
        (there / "b").write_bytes((there / "c").read_bytes())
        one = worker(program)
        with pytest.raises(DamagedState, match="was removed"):
            one.read(states / "a")
        with pytest.raises(DamagedState, match="has put there"):
            one.read(states / "b")
        with pytest.raises(DamagedState):
            one.folder(states)
        (there.parent / "states.list").unlink()
        with pytest.raises(DamagedState, match=r"states\.list: was removed"):
            one.read(states / "d")


def test_a_copy_of_the_root_with_the_same_url_leaves_the_job_that_runs_alone(
    meeting: Meeting,
    worker: Callable[[ProgramEnd], WorkerEnd],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(journal, "BEAT_S", 0.05)
    monkeypatch.setattr(left, "_SILENT_S", 1.0)
    kept = Keep()
    with meeting.open("first") as program:
        program.step("keep", kept)
        program.take()
        one = worker(program)
        with meeting.open("of-a-copy"):
            wait(lambda: "another program has the job first" in caplog.text, program)
        one.hand_over("keep", [b"0"])
        wait(lambda: len(kept.said) == 2, program)
