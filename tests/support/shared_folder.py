"""A folder for what is made once for a whole test run: the processes of pytest-xdist share it.

`tests/conftest.py` opens it. A process outside a test run, or one that is started without
`VARIABLE`, has a folder of its own.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

VARIABLE: Final = "TIDEMILL_TEST_SHARED"
"""The environment variable that names the folder."""


def open_shared_folder(config: pytest.Config, close: Callable[[Path], None]) -> None:
    """Make the folder for this run; when pytest ends, ``close`` is called and it is removed."""
    if hasattr(config, "workerinput"):  # a worker: the process that started it has made the folder
        return
    folder = tempfile.mkdtemp(prefix="tidemill-tests-")

    def removed() -> None:
        close(Path(folder))
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(removed)
    os.environ[VARIABLE] = folder


@functools.cache
def shared_folder() -> Path:
    """Return the folder of this run, else one that lives as long as this process."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = Path(tempfile.mkdtemp(prefix="tidemill-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
