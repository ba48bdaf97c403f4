"""A program and the tasks of its jobs in batch over an exchange: files that pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support.waiting import wait_until
from tidemill.features.errors import DamagedState, EngineLost, InputError, WorkerCodeDiffers
from tidemill.pipelines.io.exchange import task_place
from tidemill.pipelines.io.exchange.batch_end import BatchEnd, JobEnd, batch_exchange
from tidemill.pipelines.io.exchange.chunked import CHUNK, ChunkedObject, put_file
from tidemill.pipelines.io.exchange.names import DONE, DOWN, OUT, Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.sealed import sealed, told

SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 40 * CHUNK + 7)


def some_bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_any_part_of_a_large_file_is_read_alone(size: int, tmp_path: Path) -> None:
    data, objects = some_bytes(size), Objects(f"file://{tmp_path}/exchange")
    (tmp_path / "file").write_bytes(data)
    put_file(objects, "a/file", tmp_path / "file")
    found = ChunkedObject(objects, "a/file")
    assert found.size == size
    chance = np.random.default_rng(1)
    for _ in range(20):
        start, stop = sorted(chance.integers(0, size + 1, 2).tolist())
        part = found.read(start, stop - start)
        assert part.to_pybytes() == data[start:stop]
        assert part.address % 64 == 0
    found.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[CHUNK + 5] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-CHUNK])


def _replace(path: Path) -> None:
    path.write_bytes(path.with_name("other").read_bytes())


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (_flip, "was changed since it was written"),
        (_cut, "does not end as it was written"),
        (_replace, "a/other, which somebody has put there"),
        (Path.unlink, "was removed, and not by Tidemill"),
    ],
)
def test_an_object_that_is_not_what_was_written_is_an_error_by_name(
    do: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    objects, data = Objects(f"file://{tmp_path}/exchange"), some_bytes(3 * CHUNK)
    for name in ("file", "other"):
        (tmp_path / name).write_bytes(data)
        put_file(objects, f"a/{name}", tmp_path / name)
    do(tmp_path / "exchange" / "a" / "file")
    with pytest.raises(DamagedState, match=said):
        ChunkedObject(objects, "a/file").copy_to(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@dataclass
class Meeting:
    """A program with a root, and an exchange."""

    root: Path
    exchange: Path

    @contextmanager
    def open(
        self, gives: Mapping[str, Sequence[Path]], code: ProgramCode | None = None
    ) -> Iterator[tuple[BatchEnd, JobEnd]]:
        writes = [self.root / "build", self.root / "work"]
        with (
            batch_exchange(f"file://{self.exchange}", self.root, "root-id", writes) as end,
            end.job("job", gives, code) as job,
        ):
            yield end, job

    def left(self) -> list[Path]:
        return [path for path in self.exchange.rglob("*") if path.is_file()]


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    (tmp_path / "root" / "log").mkdir(parents=True)
    return Meeting(tmp_path / "root", tmp_path / "exchange")


def test_a_task_reads_what_is_given_and_the_program_takes_what_it_leaves(
    meeting: Meeting, tmp_path: Path
) -> None:
    source, log = tmp_path / "source.csv", meeting.root / "log" / "0"
    source.write_text("a source")
    log.write_text("a log")
    build, work = meeting.root / "build", meeting.root / "work"
    with meeting.open({"some": [source, log], "none": []}) as (end, job):
        with job.place.task("first") as task:
            given = task.take("some")
            assert {path: copy.read_text() for path, copy in given.items()} == {
                source: "a source", log: "a log",
            }  # fmt: skip
            assert given[log] == task.at(log)
            assert task.path_of(task.at(log)) == log
            assert task.take("none") == {}
            for path in (build / "table" / "0", work / "done", work / "spill" / "0"):
                task.at(path).parent.mkdir(parents=True, exist_ok=True)
                task.at(path).write_text(f"this is {path.name}")
            task.leave([task.at(work / "done")], lambda path: "spill" in path.parts)
        assert not task.folder.exists()
        wait_until((work / "done").exists)
        assert (build / "table" / "0").read_text() == "this is 0"
        assert sorted(path.name for path in work.rglob("*")) == ["done"]
        # What is for other tasks, they read, and the program may.
        spilled = work / "spill" / "0"
        with job.place.task("second") as task:
            assert task.open(task.at(spilled)).read(5, 2).to_pybytes() == b"is"
            task.leave()
        assert end.open(spilled).size == len("this is 0")
        end.forget(spilled.parent)
        with pytest.raises(DamagedState, match="was removed"):
            end.open(spilled)
        job.check_workers()
    assert meeting.left() == []
    assert log.read_text() == "a log"


def fail(job: JobEnd, path: Path) -> None:
    with job.place.task("first") as task:
        task.at(path).write_text("what is not whole")
        raise ZeroDivisionError


def test_a_task_that_fails_leaves_nothing_and_says_why_where_the_engine_would_try_again(
    meeting: Meeting,
) -> None:
    code = ProgramCode.here("tests.support.trained_bundle:PROJECT", "other")
    with meeting.open({}, code) as (_, job):
        with pytest.raises(WorkerCodeDiffers), job.place.task("first"):
            raise AssertionError
        wait_until(job.program.problem)
        assert "WorkerCodeDiffers" in job.program.problem()
    with meeting.open({}) as (_, job):
        with pytest.raises(ZeroDivisionError):
            fail(job, meeting.root / "build")
        job.take()
        assert not (meeting.root / "build").exists()


def test_a_file_that_is_changed_while_it_is_given_is_an_error(
    meeting: Meeting, tmp_path: Path
) -> None:
    source = tmp_path / "source.csv"
    source.write_text("one")
    with meeting.open({"some": [source]}) as (end, _):
        source.write_text("another")
        with (
            pytest.raises(InputError, match=r"source.csv was changed"),
            end.job("later", {"some": [source]}, None),
        ):
            raise AssertionError


def test_nothing_is_written_where_tasks_do_not_write(meeting: Meeting) -> None:
    with meeting.open({}) as (_, job):
        objects, name = Objects(job.program.place.url), f"{DONE}/evil"
        evil = told(Told.DONE, {"names": ["CURRENT", "build/../../evil"]})
        objects.put(name, *sealed(objects.place(name), [evil]))
        with pytest.raises(DamagedState, match="wants 'CURRENT' to be written"):
            job.take()
        with pytest.raises(DamagedState, match="wants 'CURRENT' to be written"):
            wait_until(job.check)
    assert not (meeting.root / "CURRENT").exists()


def test_a_task_ends_when_its_program_does(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_place, "_LOOK_S", 0.0)
    with meeting.open({}) as (_, job):
        objects = Objects(job.program.place.url)
        wait_until(lambda: objects.names(DOWN))
        with job.place.task("first") as task:
            task.leave()
            place = job.place
    with pytest.raises(EngineLost, match="tells nothing any more"):
        task.leave()
    # One that was killed is silent.
    for name in (f"{DOWN}/1", f"{DOWN}/2"):
        objects.put(name, b"beat")
        with place.task("second"):
            pass
    monkeypatch.setattr(task_place, "SILENT_S", 0.0)
    with pytest.raises(EngineLost, match="tells nothing any more"), place.task("third"):
        raise AssertionError


def test_workers_are_missed_only_while_they_have_a_task(meeting: Meeting) -> None:
    with meeting.open({}) as (_, job):
        up = Objects(job.program.place.url)
        with job.place.task("first"):
            wait_until(lambda: job._at_work)
            (name,) = job._at_work
            wait_until(lambda: job._at_work[name] == 1)
        wait_until(lambda: job._at_work[name] == 0)
        assert OUT not in {one.partition("/")[0] for one in up.names()}
