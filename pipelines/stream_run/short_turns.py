"""Short turns for the threads of a stream's process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TURN_S: Final = 0.000_5
"""How long a thread keeps the interpreter while another one waits for it."""

_lock: Final = threading.Lock()
_before: Final[list[float]] = []


@contextmanager
def short_turns() -> Iterator[None]:
    """Let the threads of this process take turns every `TURN_S` while the block runs.

    The threads of a stream share Python's interpreter: one reads topics, others process bundles,
    deliver predictions, and answer questions. A bundle lets go of the interpreter dozens of times,
    whenever it calls Arrow, or reads or writes a file; to get it back from a thread that computes,
    it waits for the end of a turn. With Python's turns of 5 ms a bundle of a few rows waits longer
    than it works.

    The turns of before come back after the last of the blocks that run at the same time.
    """
    with _lock:
        _before.append(sys.getswitchinterval())
        sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                sys.setswitchinterval(before)
