"""The summary of a run, ``root/summary.json``: the figures of each stage.

Promises: the file is always complete. A stage's figures replace those of its last run and remove
those of later stages, which used its old output; no others are lost, also when two stages end at
the same time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import InputError
from tidemill.pipelines.run import paths
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.folder_lock import folder_lock
from tidemill.serving.files.read_files import read_json

_ORDER: Final = ("backfill", "train", "stream", "verify")
"""Stages in order: each uses the output of those before it."""


def read_summary(root: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage's last run, by stage; empty before the first run.

    Raises:
        DamagedFile: The file is not a summary.
    """
    path = root / paths.SUMMARY
    return read_json(path, _stages, "remove it and run again") if path.exists() else {}


def _stages(found: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise TypeError("it must map stages to their figures")
    return found


def write_summary(root: Path, stage: str, figures: Mapping[str, Any]) -> None:
    """Write a stage's figures to the summary, in place of those of its last run.

    The figures of later stages are removed, since they describe the stage's old output.

    Args:
        root: The run's root; created if it is missing.
        stage: The stage's name.
        figures: JSON values by name.

    Raises:
        InputError: A figure is not a JSON value, such as NaN or infinity.
        DamagedFile: The existing file is not a summary.
    """
    _check(figures, stage)
    root.mkdir(parents=True, exist_ok=True)
    with folder_lock(root):
        summary = read_summary(root)
        summary[stage] = dict(figures)
        if stage in _ORDER:
            for later in _ORDER[_ORDER.index(stage) + 1 :]:
                summary.pop(later, None)
        with atomic_write(root / paths.SUMMARY, durable=True) as unfinished:
            unfinished.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", "utf-8")


def _check(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"summary: {name} has the key {key!r}, expected a text")
            _check(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check(item, f"{name}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"summary: {name} is {value}; write None for what has no value")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise InputError(
            f"summary: {name} is a {type(value).__name__}, expected a JSON value; convert it"
        )
