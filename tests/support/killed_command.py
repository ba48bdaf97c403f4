"""A command of `tidemill` in a process of its own, which kills itself at a chosen call."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import fork_server
from tests.support.proof_run import score_without_models
from tidemill.pipelines.commands.cli import main


def kill_at(place: str) -> None:
    """Let this process be killed, as by ``kill -9``, when it or a child calls a function.

    Args:
        place: ``MODULE:NAME``, where NAME may be ``CLASS.METHOD``; or ``MODULE:NAME@N`` for its
            N-th call.
    """
    place, _, number = place.partition("@")
    module, _, name = place.partition(":")
    left = int(number or 1)
    owner: Any = importlib.import_module(module)
    *classes, function = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    parent = os.getpid()
    wanted = getattr(owner, function)  # a name that is gone must not make this do nothing

    def killed(*given: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            os.kill(parent, signal.SIGKILL)
            signal.pause()  # a child is killed with its parent
        return wanted(*given, **named)

    setattr(owner, function, killed)


def killed(place: str, *command: str) -> int:
    """Run a command that is to be killed; return the exit status of its process.

    Args:
        place: See `kill_at`.
        command: The command line, without the program's name.
    """
    process = fork_server.processes().Process(target=_run, args=(place, command))
    process.start()
    process.join(300)
    assert process.exitcode is not None, f"{command} still runs"
    return process.exitcode


def _run(place: str, command: Sequence[str]) -> None:
    kill_at(place)
    score_without_models(pytest.MonkeyPatch())
    main(command)
