"""Answers that were proven, kept for events that come late: these change what is complete.

An answer is compared with all events that have come by its round. An event that comes later, before
its instant, is either late, and the answer differs from what is complete by it; or it was not late,
and the answer was given too early, which is a fault. So answers are kept for as long as events may
come late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import one_batch
from tidemill.pipelines.verify.compare_predictions import ViewVerdict, compare_view
from tidemill.pipelines.verify.diagnosis import note_wrong_values
from tidemill.pipelines.verify.findings import Findings
from tidemill.pipelines.verify.follow.answers import history_of, some_of
from tidemill.pipelines.verify.follow.differences import EXAMPLES, Differences
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.pipelines.verify.served import Served

_MOST: Final = 500_000
"""So many answers are kept at most, the newest."""


@dataclass
class KeptAnswers:
    """The answers that an event may still be late for.

    Attributes:
        project: The project.
        partitions: Source to the number of its partitions.
        served: The answers, with their requests; None before the first.
    """

    project: Project
    partitions: dict[str, int]
    served: Served | None = None
    _counted: dict[tuple[str, int], BoolArray] = field(default_factory=dict)

    def add(self, served: Served) -> None:
        """Keep answers."""
        if self.served is None:
            self.served = served
            return
        both = (
            pa.concat_batches([one, other])
            for one, other in (
                (self.served.predictions, served.predictions),
                (self.served.requests, served.requests),
            )
        )
        predictions, requests = both
        self.served = Served(predictions, requests, predictions.num_rows, predictions.num_rows, 0)

    def note(self, view: FeatureView, verdict: ViewVerdict, served: Served) -> None:
        """Note which values of answers are counted as different."""
        different = verdict.late | verdict.wrong
        for row in np.flatnonzero(different.any(axis=1)).tolist():
            place = int(_places(served)[row])
            before = self._counted.get((view.name, place))
            self._counted[view.name, place] = (
                different[row] if before is None else different[row] | before
            )

    def forget_before(self, instant_us: int) -> None:
        """Forget answers as of before an instant."""
        if self.served is None:
            return
        newest = np.max([self._instants(view) for view in self.project.views], axis=0)
        kept = newest >= instant_us
        if len(kept) > _MOST:
            kept[: len(kept) - _MOST] = False
        if not kept.all():
            self.served = some_of(self.served, kept)
            there = set(_places(self.served).tolist())
            self._counted = {at: found for at, found in self._counted.items() if at[1] in there}

    @property
    def first_release(self) -> int | None:
        """The lowest number of a release that an answer names; None without answers."""
        if self.served is None or not self.served.predictions.num_rows:
            return None
        predictions = self.served.predictions
        columns = [predictions.column(f"release__{view.name}") for view in self.project.views]
        return min([int(hashing.bits(column).min()) for column in columns])

    def _instants(self, view: FeatureView) -> Int64Array:
        assert self.served is not None
        return hashing.bits(self.served.predictions.column(f"as_of__{view.name}"))

    def compare_again(
        self,
        view: FeatureView,
        came: pa.Table,
        events: Callable[[FeatureView, pa.Array], pa.Table],
        evidence: Evidence,
        differences: Differences,
    ) -> int:
        """Compare the answers of entities of which events came from before an answer.

        Args:
            view: The view.
            came: These events.
            events: Returns the events of entities.
            evidence: The releases.
            differences: Takes what is new.

        Returns:
            How many answers were compared.
        """
        if self.served is None or not len(came):
            return 0
        keys = self.served.requests.column(self.project.request.key_column(view.entity))
        of_event = one_batch(came.select([view.key, view.stream.event_time]))
        first = pa.Table.from_batches([of_event]).group_by(view.key).aggregate(
            [(view.stream.event_time, "min")]
        )  # fmt: skip
        index = pc.index_in(keys, value_set=first.column(view.key).combine_chunks())
        place = pc.fill_null(index, -1).to_numpy()
        found = place >= 0
        earliest = hashing.bits(first.column(f"{view.stream.event_time}_min").combine_chunks())
        at = np.where(found, place, 0)
        touched = found & (self._instants(view) > earliest[at])
        if not touched.any():
            return 0
        some = some_of(self.served, touched)
        partitions = self.partitions[view.stream.name]
        history = history_of(
            self.project, view, events(view, keys.filter(pa.array(touched))), partitions
        )
        verdict = compare_view(history, evidence, some, view, Findings())
        nothing = np.zeros(len(view.columns), np.bool_)
        known = np.array(
            [self._counted.get((view.name, at), nothing) for at in _places(some).tolist()]
        )
        ids = some.predictions.column("request_id").to_pylist()
        differences.add_late(verdict, evidence, ids, known)
        verdict.wrong[known] = False
        findings = Findings()
        note_wrong_values(verdict, evidence, some, findings, EXAMPLES)
        differences.take(findings)
        self.note(view, verdict, some)
        return int(some.predictions.num_rows)


def _places(served: Served) -> Int64Array:
    return places_of(served.predictions, "partition", "position")
