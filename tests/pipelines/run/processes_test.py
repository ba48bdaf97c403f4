"""Forked processes that share work; each test is a program, since a test's process has threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.markdown import ROOT

BEGIN = """
import os, signal, sys, time
from tidemill.features.errors import InputError
from tidemill.pipelines.run import processes
processes.usable_cores = lambda: 2

def work(task):
    if task == "wrong":
        raise InputError("a wrong row")
    if task == "fault":
        {}["absent"]
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "sleep":
        os.write(1, f"{os.getpid()}\\n".encode())  # whole, beside the other process
        time.sleep(600)
    time.sleep(0.01 * (len(task) % 3))
    return f"{task} by {os.getpid()}"

with processes.sharing(work):
    shared = processes.running()
"""


def program(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + "    " + code.replace("\n", "\n    ")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_results_come_in_the_order_of_the_tasks_from_both_processes() -> None:
    done = program(
        "found = [one.split(' by ') for one in shared.map([str(n) for n in range(40)])]\n"
        "assert [task for task, _ in found] == [str(n) for n in range(40)]\n"
        "assert len({pid for _, pid in found} - {str(os.getpid())}) == 2\n"
        "assert shared.map([]) == []"
    )
    assert done.returncode == 0, done.stderr


def test_an_error_of_a_task_is_raised_here() -> None:
    done = program("shared.map(['a', 'wrong'])")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("tidemill.features.errors.InputError: a wrong row")


def test_a_fault_comes_with_its_traceback() -> None:
    done = program("shared.map(['fault'])")
    assert "KeyError: 'absent'" in done.stderr
    assert "in work" in done.stderr


def test_a_process_that_is_killed_is_an_error_that_says_so() -> None:
    done = program("shared.map(['a', 'die', 'b'])")
    assert "a process that shared the work has ended (SIGKILL)" in done.stderr
    assert "out of memory" in done.stderr


def test_no_process_outlives_a_parent_that_is_killed() -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", BEGIN + "    shared.map(['sleep', 'sleep'])"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    children = [int(running.stdout.readline()) for _ in range(2)]
    running.kill()
    running.wait()
    deadline = time.monotonic() + 60
    while any(is_there(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_there(child) for child in children)


def is_there(pid: int) -> bool:
    """Tell whether a process runs; one that has ended may wait for its parent to notice."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
