"""Attempts: nobody repeats what a worker may still write; a source stops without its program."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.markdown import ROOT
from tidemill.features.errors import EngineLost
from tidemill.pipelines.io.attempts import Attempt

WORK = """
import sys
from pathlib import Path
from tidemill.features.errors import EngineLost
from tidemill.pipelines.io.attempts import Attempt
try:
    Attempt(Path(sys.argv[1])).take_up_work({"pid": 1, "started": "now", "host": "here"})
except EngineLost:
    print("refused", flush=True)
else:
    print("works", flush=True)
    sys.stdin.read()
"""


def worker(attempt: Attempt) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(attempt.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def waits_for_a_lock(pid: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and f" {pid} " in line for line in lines)


def test_an_attempt_is_closed_when_its_last_worker_has_ended_and_no_worker_comes_later(
    tmp_path: Path,
) -> None:
    attempt = Attempt.below(tmp_path)
    with attempt.submitted():
        with worker(attempt) as first, worker(attempt) as second:
            assert [said(first), said(second)] == ["works", "works"]
            assert len(attempt.workers()) == 2
            first.kill()
            first.wait()
            assert not attempt.close_if_unused()
            second.kill()
            second.wait()
        assert attempt.close_if_unused()
        with worker(attempt) as late:
            assert said(late) == "refused"
        assert attempt.close_if_unused()


def test_a_worker_that_had_the_file_open_when_the_attempt_was_closed_is_refused(
    tmp_path: Path,
) -> None:
    attempt = Attempt.below(tmp_path)
    with attempt.submitted(), attempt.workers_lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with worker(attempt) as waiting:
            try:
                while not waits_for_a_lock(waiting.pid):
                    assert waiting.poll() is None
                attempt.workers_lock.unlink()
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
            assert said(waiting) == "refused"
    assert attempt.workers() == []


def test_a_source_goes_on_while_its_program_lives_and_stops_behind_it(tmp_path: Path) -> None:
    attempt = Attempt.below(tmp_path)
    with attempt.submitted():
        attempt.watch().check()
        attempt.watch().check()  # another instance in the same process
    with pytest.raises(EngineLost, match="the program that submitted the job has ended"):
        attempt.watch().check()


def test_a_source_that_the_engine_restarts_in_another_process_is_refused(tmp_path: Path) -> None:
    attempt = Attempt.below(tmp_path)
    with attempt.submitted():
        (attempt.folder / "source.json").write_text("here 1")
        with pytest.raises(EngineLost, match="the engine has restarted the source"):
            attempt.watch().check()


def test_what_a_worker_has_half_written_of_itself_is_left_out(tmp_path: Path) -> None:
    attempt = Attempt.below(tmp_path)
    with attempt.submitted():
        (attempt.folder / "worker-1.json").write_text(json.dumps({"pid": 1}))
        (attempt.folder / "worker-2.json").write_text('{"pi')
        assert attempt.workers() == [{"pid": 1}]
