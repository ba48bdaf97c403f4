"""How many requests of a log were forgotten: a stream takes them along, and nobody gets an answer.

They are counted in the log itself, since a generation may have inherited them with the live rows
of the one before. None is added while a stream runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Project
from tidemill.pipelines.forget.record import FORGOTTEN
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.log import POSITION, forgotten_rows
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.serving.generations.current import Current


@dataclass(frozen=True)
class BlankRequests:
    """The forgotten requests of a log.

    Attributes:
        positions: Partition to their positions, ascending.
    """

    positions: Mapping[int, Int64Array]

    @staticmethod
    def read(root: Path, current: Current, project: Project) -> BlankRequests:
        """Find them in the log of a generation, and in the polls that are not sealed.

        Args:
            root: The root; where nothing was ever forgotten, nothing is read.
            current: The folders of the generation.
            project: The project.
        """
        if not any((root / FORGOTTEN).glob("[0-9]*.json")):
            return BlankRequests({})
        request, log = project.request, stream_log(current, project)
        found: dict[int, set[int]] = {}
        for partition in range(log.partitions(request.name)):
            rows = log.read(request.name, partition, [POSITION, request.request_id])
            blank = forgotten_rows(request, rows)
            found[partition] = set(rows.column(POSITION).to_numpy()[blank].tolist())
        live = LiveLog(current.folder / LIVE, project)
        if live.exists:
            for logged in live.polls.read(after=live.sealed().number):
                for part in Poll.decode(bytes(logged.poll)).parts:
                    if part.source == request.name and part.rows is not None:
                        gone = forgotten_rows(request, part.rows)
                        positions = part.rows.column(POSITION).to_numpy()[gone]
                        found[part.partition].update(positions.tolist())
        return BlankRequests(
            {partition: np.array(sorted(of_it), np.int64) for partition, of_it in found.items()}
        )

    def between(self, before: Sequence[int], after: Sequence[int]) -> int:
        """Count them between two cuts: the position in each partition, and the one after."""
        count = 0
        for partition, positions in self.positions.items():
            ends = before[partition], after[partition]
            first, stop = np.searchsorted(positions, ends, "left").tolist()
            count += stop - first
        return count
