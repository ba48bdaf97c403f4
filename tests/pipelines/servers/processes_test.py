"""Processes are known by number and start time; none is signalled that only has the number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tidemill.features.errors import ServerNotStopped
from tidemill.pipelines.servers import processes
from tidemill.pipelines.servers.processes import Guard, RunningProcess, running_process, start

SLEEP = ("/bin/sleep", "60")
STUBBORN = ("/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done")


def wait_for(path: Path, text: str) -> str:
    deadline_s = time.monotonic() + 60
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline_s, f"{path} never held {text!r}"
        time.sleep(0.01)
    return path.read_text()


def is_gone(process: RunningProcess) -> bool:
    deadline_s = time.monotonic() + 60
    while process.is_alive():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def test_a_process_is_recorded_before_its_program_runs(tmp_path: Path) -> None:
    seen: list[str] = []

    def record(process: RunningProcess) -> None:
        time.sleep(0.2)
        seen.append(f"{process.pid} {(tmp_path / 'log').read_text()}")

    process = start(["/bin/sh", "-c", "echo my number is $$"], tmp_path / "log", record)
    assert seen == [f"{process.pid} "]
    assert wait_for(tmp_path / "log", "number") == f"my number is {process.pid}\n"
    assert is_gone(process)


def test_a_caller_that_dies_while_it_records_leaves_no_server(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from tidemill.pipelines.servers.processes import start

        def record(process):
            Path({str(tmp_path / "pid")!r}).write_text(f"{{process.pid}}\\n")
            os.kill(os.getpid(), signal.SIGKILL)

        start(["/bin/sh", "-c", "echo it runs"], Path({str(tmp_path / "log")!r}), record)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    pid = int((tmp_path / "pid").read_text())
    left = running_process(pid)
    assert left is None or is_gone(left)
    assert (tmp_path / "log").read_text() == ""


def test_a_process_ends_with_sigterm_else_with_sigkill(tmp_path: Path) -> None:
    polite = start(SLEEP, tmp_path / "log")
    assert polite.is_alive()
    assert polite.end(30.0)
    assert not polite.is_alive()
    assert not polite.end(30.0)
    stubborn = start(STUBBORN, tmp_path / "log")
    wait_for(tmp_path / "log", "deaf")
    assert stubborn.end(0.2)
    assert not stubborn.is_alive()


def test_a_paused_process_is_alive_and_can_be_ended(tmp_path: Path) -> None:
    process = start(SLEEP, tmp_path / "log")
    assert process.send(signal.SIGSTOP)
    assert process.is_alive()
    assert process.end(30.0)
    assert not process.is_alive()


def test_a_process_that_got_the_number_is_never_signalled(tmp_path: Path) -> None:
    """A record from before: the same number, another start."""
    process = start(SLEEP, tmp_path / "log")
    recycled = RunningProcess(process.pid, f"{process.started}0")
    try:
        assert not recycled.is_alive()
        assert not recycled.send(signal.SIGKILL)
        assert not recycled.end(30.0)
        assert not recycled.end(0.0)
        assert process.is_alive()
    finally:
        assert process.end(0.0)


def test_the_status_of_another_child_with_the_number_is_left_to_its_owner() -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "exit 7"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not RunningProcess(child.pid, "an earlier start").is_alive()
    assert child.wait(60) == 7


def test_there_is_no_process_behind_a_number_that_is_free(tmp_path: Path) -> None:
    process = start(SLEEP, tmp_path / "log")
    assert running_process(process.pid) == process
    process.end(0.0)
    assert running_process(process.pid) is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_guarded_process_dies_with_its_owner(tmp_path: Path, number: signal.Signals) -> None:
    script = f"""
        from pathlib import Path
        from tidemill.pipelines.servers.processes import Guard, start
        import time

        process = start({SLEEP!r}, Path({str(tmp_path / "log")!r}))
        guard = Guard(process)
        print(process.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        server = running_process(int(owner.stdout.readline()))
        assert server is not None
        owner.send_signal(number)
        owner.wait(60)
    assert is_gone(server)


def test_a_guard_that_is_dismissed_kills_nothing(tmp_path: Path) -> None:
    process = start(SLEEP, tmp_path / "log")
    guard = Guard(process)
    guard.dismiss()
    time.sleep(0.2)
    assert process.is_alive()
    process.end(0.0)


def test_a_process_that_survives_sigkill_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that waits for a disk; here the signals are lost instead."""
    process = start(SLEEP, tmp_path / "log")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(processes, "_KILL_S", 0.1)
            patched.setattr(RunningProcess, "send", lambda *_: True)
            with pytest.raises(ServerNotStopped, match=f"process {process.pid} still runs"):
                process.end(0.1)
    finally:
        assert process.end(0.0)
