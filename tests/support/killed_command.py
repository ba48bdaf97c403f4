"""A program that runs a command of `tidemill`, and kills itself at a chosen call."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import pytest

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


if __name__ == "__main__":
    kill_at(sys.argv[1])
    score_without_models(pytest.MonkeyPatch())
    main(sys.argv[2:])
