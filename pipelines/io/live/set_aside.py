"""The rejected records of a live log, and what became of mended ones, sealed or not.

The promise: whoever reads while another process reads the topics, and seals, gets the records of
all polls up to one of them, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.live.live_log import MENDED, POLL_NUMBER, REJECTED, LiveLog
from tidemill.pipelines.io.live.poll_log import LoggedPoll


def rejected_records(live: LiveLog) -> Iterator[pa.Table]:
    """Yield rejected records (`features.rows.rejected.SCHEMA`), in the order of polls.

    What their messages carried (`pipelines.io.live.mended.CARRIED`) stands beside where it is
    known.

    Raises:
        StateError: The live log is damaged.
        DamagedFile: A file of it is damaged.
    """
    return _of(live, REJECTED, lambda logged: logged.set_aside)


def mended_outcomes(live: LiveLog) -> Iterator[pa.Table]:
    """Yield what became of mended messages (`pipelines.io.live.mended.OUTCOMES`), likewise."""
    return _of(live, MENDED, lambda logged: logged.mended)


def _of(
    live: LiveLog, kind: str, of: Callable[[LoggedPoll], pa.RecordBatch | None]
) -> Iterator[pa.Table]:
    if not live.exists:
        return
    while True:
        until = live.sealed().number
        try:
            # First those that are not sealed: a seal would remove them from the poll log.
            unsealed = [of(logged) for logged in live.polls.read(after=until)]
            break
        except (DamagedState, FileNotFoundError):
            if live.sealed().number == until:
                raise
    for table in live.beside(kind, until):
        numbers = table.column(POLL_NUMBER)
        yield table.filter(pc.less_equal(numbers, until)).drop_columns([POLL_NUMBER])
    yield from (pa.Table.from_batches([one]) for one in unsealed if one is not None)
