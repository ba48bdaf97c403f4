"""What polls of a live log have beside their rows, sealed or not.

These are rejected records, what became of mended ones, and what was lost.

The promise: whoever reads while another process reads the topics, and seals, gets the records of
all polls up to one of them, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.live.live_cuts import REMEDY
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.lost import RECORDS, AcceptedLoss, accepted_losses
from tidemill.pipelines.io.live.poll_files import LOST, MENDED, POLL_NUMBER, REJECTED
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.serving.files.read_files import reading


def rejected_records(live: LiveLog) -> Iterator[pa.Table]:
    """Yield rejected records (`features.rows.rejected.SCHEMA`), in the order of polls.

    What their messages carried (`pipelines.io.live.mended.CARRIED`) stands beside where it is
    known.

    Raises:
        StateError: The live log is damaged.
        DamagedFile: A file of it is damaged.
    """
    for table in _of(live, REJECTED, lambda logged: logged.set_aside):
        yield table.drop_columns([POLL_NUMBER])


def mended_outcomes(live: LiveLog) -> Iterator[pa.Table]:
    """Yield what became of mended messages (`pipelines.io.live.mended.OUTCOMES`), likewise."""
    for table in _of(live, MENDED, lambda logged: logged.mended):
        yield table.drop_columns([POLL_NUMBER])


def losses_of(live: LiveLog, *, only_sealed: bool = False) -> list[AcceptedLoss]:
    """Return what topics have lost and a person has accepted, in the order of polls.

    Args:
        live: The live log.
        only_sealed: Whether to leave out polls that are not sealed, which takes less time.

    Raises:
        StateError: The live log is damaged.
        DamagedFile: A file of it is damaged.
    """
    found = []
    for table in _of(live, LOST, lambda logged: logged.lost, only_sealed=only_sealed):
        numbers = table.column(POLL_NUMBER).to_pylist()
        with reading(live.folder / LOST, REMEDY):
            found += accepted_losses(table.select(RECORDS.names), numbers)
    return found


def _of(
    live: LiveLog,
    kind: str,
    of: Callable[[LoggedPoll], pa.RecordBatch | None],
    *,
    only_sealed: bool = False,
) -> Iterator[pa.Table]:
    if not live.exists:
        return
    unsealed: list[tuple[int, pa.RecordBatch | None]] = []
    while True:
        until = live.sealed().number
        if only_sealed:
            break
        try:
            # First those that are not sealed: a seal would remove them from the poll log.
            unsealed = [(one.number, of(one)) for one in live.polls.read(after=until)]
            break
        except (DamagedState, FileNotFoundError):
            if live.sealed().number == until:
                raise
    for table in live.beside(kind, until):
        numbers = table.column(POLL_NUMBER)
        yield table.filter(pc.less_equal(numbers, until))
    for number, batch in unsealed:
        if batch is not None:
            table = pa.Table.from_batches([batch])
            yield table.append_column(POLL_NUMBER, pa.array([number] * len(table), pa.int64()))
