"""An attempt while a block runs: its exchange, if it has one, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.pipelines.io.attempts import Attempt

if TYPE_CHECKING:
    from tidemill.pipelines.io.exchange.program_end import ProgramEnd

    Meeting = Callable[[str], AbstractContextManager[ProgramEnd]]
    """Opens the program's end of an exchange for a job of a name."""


@contextmanager
def attempted(folder: Path, end: Callable[[Attempt], None]) -> Iterator[tuple[Attempt, ExitStack]]:
    """Begin an attempt; whatever happens in the block, its job is ended behind it.

    Args:
        folder: The folder of attempts.
        end: Ends the job, and removes what it has left.

    Yields:
        The attempt, and what to open its exchange in: that is closed after the job has ended, and
        while the attempt is still locked.
    """
    attempt = Attempt.below(folder)
    with attempt.submitted(), ExitStack() as opened:
        try:
            yield attempt, opened
        finally:
            end(attempt)
