"""How far the operators of other processes are, some milliseconds ago: a number in a small file.

The figures of a process are written twice a second (`pipelines.telemetry.figures_files`). A reader
that waits for its last poll to be taken would read two polls a second.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tidemill.pipelines.telemetry.figures import Figures
from tidemill.pipelines.telemetry.metrics import POLLS_TAKEN

SUFFIX: Final = ".taken"
_EVERY_S: Final = 0.005
_BYTES: Final = 8


@contextmanager
def taken_written(figures: Figures, folder: Path) -> Iterator[None]:
    """Write how far the operators of this process are while the block runs.

    Args:
        figures: The figures of this process.
        folder: The folder of the run's figures.
    """
    file = os.open(
        folder / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}", os.O_CREAT | os.O_WRONLY
    )
    ended = threading.Event()

    def write() -> None:
        written, is_over = 0, False
        while not is_over:
            is_over = ended.wait(_EVERY_S)
            taken = int(figures.highest(POLLS_TAKEN) or 0)
            if taken != written:
                with suppress(OSError):  # a full disk: the figures still tell
                    os.pwrite(file, taken.to_bytes(_BYTES, "big"), 0)
                    written = taken

    writer = threading.Thread(target=write, daemon=True, name="tidemill-taken")
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
        os.close(file)


def write_taken(folder: Path, worker: str, taken: int) -> None:
    """Write how far the operators of a process are that has told it.

    Args:
        folder: The folder of the run's figures.
        worker: The process's name.
        taken: The number of the last poll that an operator has taken.
    """
    (folder / f"{worker}{SUFFIX}").write_bytes(taken.to_bytes(_BYTES, "big"))


def read_taken(folder: Path) -> int:
    """Return the number of the last poll that an operator of another process has taken."""
    taken = 0
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            data = path.read_bytes()
            if len(data) == _BYTES:
                taken = max(taken, int.from_bytes(data, "big"))
    return taken
