"""All joiners of a stream together, as plain objects: who repeats or resumes a stream needs them.

Inside a pipeline each joiner is alone (`pipelines.stream.featurize`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.answer_parts import (
    Part,
    RequestPart,
    Unanswered,
    divided,
    joiner_of,
)
from tidemill.pipelines.stream.joiner_key import JoinerKey
from tidemill.pipelines.stream.state_files import read_joiner, write_joiner


@dataclass(frozen=True)
class Joiners:
    """The joiners of a stream.

    Attributes:
        all: The joiners, by number.
    """

    all: tuple[AnswerJoiner, ...]

    @staticmethod
    def empty(
        project: Project, shards: int, answer_within_us: int, joiners: int, *, apart: bool = True
    ) -> Joiners:
        """Return joiners that have taken nothing.

        Args:
            project: The project.
            shards: The number of shards of each view.
            answer_within_us: How far a frontier may pass an unanswered request.
            joiners: The number of joiners.
            apart: Whether a request is answered when it can be.
        """
        return Joiners(
            tuple(
                AnswerJoiner(project, shards, answer_within_us, key=key, apart=apart)
                for key in JoinerKey.all(joiners)
            )
        )

    def receive(self, parts: Iterable[Part]) -> tuple[list[pa.RecordBatch], list[Unanswered]]:
        """Let every joiner take its share of parts; see `AnswerJoiner.receive`."""
        of_joiners: list[list[Part]] = [[] for _ in self.all]
        for part in parts:
            if isinstance(part, RequestPart):
                of_joiners[joiner_of(part.group, len(self.all)).number].append(part)
            else:
                for mine, share in zip(of_joiners, divided(part, len(self.all)), strict=True):
                    mine.append(share)
        answered: list[pa.RecordBatch] = []
        unanswered: list[Unanswered] = []
        for joiner, mine in zip(self.all, of_joiners, strict=True):
            batches, lost = joiner.receive(mine)
            answered += batches
            unanswered += lost
        return answered, unanswered

    @property
    def requests_pending(self) -> int:
        """The number of requests that wait for an answer in any of them."""
        return sum(joiner.requests_pending for joiner in self.all)

    def polls(self) -> int:
        """Return the number of the last poll whose release some shard has given.

        Raises:
            StateMismatch: The states of the joiners are not those of one savepoint.
        """
        return int(self._first().numbers.max())

    def frontiers(self) -> Int64Array:
        """Return the frontier of each shard of each view, int64 ``(views, shards)``.

        Raises:
            StateMismatch: The states of the joiners are not those of one savepoint.
        """
        return self._first().frontiers

    def _first(self) -> AnswerJoiner:
        """Return the first joiner; the others must have taken the same releases."""
        first = self.all[0]
        for joiner in self.all[1:]:
            if (joiner.numbers != first.numbers).any() or (
                joiner.frontiers != first.frontiers
            ).any():
                raise StateMismatch(
                    f"{joiner.key} has taken other releases than {first.key}: their states are not "
                    "those of one savepoint"
                )
        return first

    def read(self, folder: Path) -> None:
        """Start them from the states at a savepoint; see `state_files.read_joiner`."""
        for joiner in self.all:
            read_joiner(folder, joiner)

    def write(self, folder: Path) -> None:
        """Write their states."""
        for joiner in self.all:
            write_joiner(folder, joiner)
