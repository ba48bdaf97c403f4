"""Where the Python workers of a Flink job come from.

A pool starts them (EXTERNAL), or each TaskManager starts its own, by a command (PROCESS).
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any, Final

from tidemill.features.errors import WrongBeamFlag, nearest
from tidemill.pipelines.engines.worker_boot import WORKER
from tidemill.pipelines.engines.worker_code import IMPORTS, WorkerCode
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.servers.python_path import import_path, python_command
from tidemill.serving.files.atomic_write import atomic_write

POOL: Final = "EXTERNAL"
COMMAND: Final = "PROCESS"

_BOOT: Final = "tidemill.pipelines.engines.worker_boot"
_KEYS: Final = ("command", "env")
_FORM: Final = """--environment_config='{"command": "/opt/shop/bin/tidemill-worker"}'"""


@dataclass(frozen=True)
class WorkerCommand:
    """The command with which TaskManagers start workers.

    Attributes:
        program: The path of a program; None for one that imports from where this program does.
        env: Environment variables for it, beside those of the TaskManager: names and values.
    """

    program: str | None = None
    env: tuple[tuple[str, str], ...] = ()


def read_command(config: str | None) -> WorkerCommand:
    """Read ``--environment_config`` of workers that a command starts.

    Args:
        config: JSON, an object of ``command`` and ``env``; None if it was not given.

    Raises:
        WrongBeamFlag: It is something else.
    """
    if config is None:
        return WorkerCommand()
    try:
        found: Any = json.loads(config)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise WrongBeamFlag(f"--environment_config={config}: with {COMMAND} write {_FORM}")
    for key in found:
        if key not in _KEYS:
            raise WrongBeamFlag(f"--environment_config has {key!r}: {nearest(key, _KEYS)}")
    program, env = found.get("command"), found.get("env", {})
    if "command" in found and not (isinstance(program, str) and program):
        raise WrongBeamFlag(f"--environment_config: the command is {program!r}; write {_FORM}")
    if not (isinstance(env, dict) and all(isinstance(value, str) for value in env.values())):
        raise WrongBeamFlag(
            f'--environment_config: env is {env!r}; write an object of texts, {{"NAME": "value"}}'
        )
    return WorkerCommand(program, tuple(env.items()))


def worker_options(pool: str, command: WorkerCommand | None, code: WorkerCode) -> list[str]:
    """Return the command-line arguments for `PipelineOptions` that say who starts workers.

    Args:
        pool: ``HOST:PORT`` of the pool.
        command: The command; None for the pool.
        code: What a worker must have imported. Its attempt has begun.

    Raises:
        FileError: A program is to be written, and cannot be.
    """
    params = code.params()
    if command is None:
        config: dict[str, Any] = {
            "url": pool,
            "params": {IMPORTS: json.dumps(import_path()), **params},
        }
        return [f"--environment_type={POOL}", f"--environment_config={json.dumps(config)}"]
    program = _write_command(code.attempt) if command.program is None else command.program
    config = {"command": program, "env": {**dict(command.env), WORKER: json.dumps(params)}}
    return [f"--environment_type={COMMAND}", f"--environment_config={json.dumps(config)}"]


def _write_command(attempt: Attempt) -> str:
    path = attempt.worker_command.absolute()
    with atomic_write(path) as unfinished:
        # A runner passes a command as one word, so this one has its arguments in a file.
        command = shlex.join(python_command(_BOOT))
        unfinished.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        unfinished.chmod(0o700)
    return str(path)
