"""A program that runs `tidemill backfill`, and kills itself at a chosen call."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from tidemill.pipelines.commands.cli import main


def kill_at(place: str) -> None:
    """Let this process be killed, as by ``kill -9``, when it or a child calls a function.

    Args:
        place: ``MODULE:NAME``, where NAME may be ``CLASS.METHOD``.
    """
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, function = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    parent = os.getpid()
    getattr(owner, function)  # a name that is gone must not make this do nothing

    def killed(*_: Any, **__: Any) -> None:
        os.kill(parent, signal.SIGKILL)
        signal.pause()  # a child is killed with its parent

    setattr(owner, function, killed)


if __name__ == "__main__":
    kill_at(sys.argv[1])
    main(sys.argv[2:])
