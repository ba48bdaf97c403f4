"""Starting another Python that imports what this one does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_START: Final = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)


def import_path() -> list[str]:
    """Return where this process imports from, as absolute paths."""
    return [str(Path(place).absolute()) for place in sys.path]


def python_command(module: str, path: Sequence[str] | None = None) -> list[str]:
    """Return the command that runs a module in another Python.

    Args:
        module: The module's name.
        path: Where it imports from; None for where this process does.
    """
    places = import_path() if path is None else list(path)
    return [sys.executable, "-c", _START, json.dumps(places), module]
