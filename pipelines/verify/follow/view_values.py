"""Comparing the values of answers and of publications of some segments, view by view."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.features.contract import TIME_MAX, BoolArray, Int64Array, window_tail
from tidemill.features.definitions import FeatureView
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.release_log import place_of
from tidemill.pipelines.verify.compare_predictions import ViewVerdict, compare_view
from tidemill.pipelines.verify.diagnosis import Kind, note_wrong_values
from tidemill.pipelines.verify.findings import LISTED, Findings, Mismatch
from tidemill.pipelines.verify.follow.answers import (
    counted_before,
    history_of,
    published_as_served,
    some_of,
)
from tidemill.pipelines.verify.follow.differences import Differences
from tidemill.pipelines.verify.follow.segment_outputs import Published
from tidemill.pipelines.verify.follow.share import is_chosen
from tidemill.pipelines.verify.follow.view_rows import ViewRows
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.pipelines.verify.served import Served


@dataclass
class Compared:
    """What was compared.

    Attributes:
        served: Values that were served, in answers and publications.
        values: How many of them were recomputed.
        predictions: Answers.
        scores: Scores that were computed again.
        releases: Releases.
        publications: Publications that were recomputed.
    """

    served: int = 0
    values: int = 0
    predictions: int = 0
    scores: int = 0
    releases: int = 0
    publications: int = 0

    def as_figures(self) -> dict[str, int]:
        """Return the counts by name."""
        return dataclasses.asdict(self)


class ViewValues:
    """Compares values with those recomputed from the log.

    Args:
        config: The configuration, with the folders of the stream.
        rows: The events.
        evidence: The releases.
        share: The share of the entities that is recomputed.
    """

    def __init__(
        self, config: Configuration, rows: ViewRows, evidence: Evidence, share: float
    ) -> None:
        self._project, self._rows = config.project, rows
        self.evidence, self._share = evidence, share

    def _keys(self, view: FeatureView, served: Served) -> Any:
        return served.requests.column(self._project.request.key_column(view.entity))

    def chosen_of_any(self, served: Served) -> BoolArray:
        """Tell which answers have a chosen entity: bool, ``(rows,)``."""
        chosen = [is_chosen(self._keys(view, served), self._share) for view in self._project.views]
        found: BoolArray = np.any(chosen, axis=0)
        return found

    def compare_answers(
        self, view: FeatureView, served: Served, differences: Differences
    ) -> tuple[int, tuple[ViewVerdict, Served] | None]:
        """Compare a view's values of answers.

        Returns:
            The number of values; the verdict, with the answers that it is about.
        """
        some = some_of(served, is_chosen(self._keys(view, served), self._share))
        if not some.predictions.num_rows:
            return 0, None
        verdict = self._compare(view, some, differences, "value")
        ids = some.predictions.column("request_id").to_pylist()
        differences.add_late(verdict, self.evidence, ids)
        if self.evidence.exact:
            asked = hashing.bits(some.requests.column(self._project.request.request_time))
            differences.add_late_requests(verdict, asked, ids)
        return some.predictions.num_rows * len(view.columns), (verdict, some)

    def compare_publications(
        self,
        view: FeatureView,
        published: Sequence[Published],
        answers: Served,
        differences: Differences,
        counts: Compared,
    ) -> None:
        """Compare the publications of a view; ``answers`` are all those of their releases."""
        served = published_as_served(self._project, view, published)
        if served is None:
            return
        counts.served += served.count * len(view.columns)
        some = some_of(served, is_chosen(self._keys(view, served), self._share))
        if not some.predictions.num_rows:
            return
        arrived = np.full(some.predictions.num_rows, TIME_MAX)
        if not self.evidence.exact and answers.predictions.num_rows:
            arrived = counted_before(self._project, view, some, answers)
        verdict = self._compare(view, some, differences, "publication", arrived)
        ids = some.predictions.column("request_id").to_pylist()
        differences.add_late(verdict, self.evidence, ids, what="publication")
        counts.publications += some.predictions.num_rows
        counts.values += some.predictions.num_rows * len(view.columns)

    def _compare(
        self,
        view: FeatureView,
        some: Served,
        differences: Differences,
        what: str,
        arrived_us: Int64Array | None = None,
    ) -> ViewVerdict:
        instants = hashing.bits(some.predictions.column(f"as_of__{view.name}"))
        tail = window_tail(int(instants.min()), view.longest_window_us, view.hop_us)
        rows = self._rows.of(view, self._keys(view, some), tail)
        history = history_of(self._project, view, rows, self._rows.partitions(view))
        values, stamps = Findings(), Findings()
        verdict = compare_view(history, self.evidence, some, view, stamps, arrived_us)
        note_wrong_values(verdict, self.evidence, some, values, LISTED, what)
        differences.take(values)
        differences.take(stamps)
        return verdict

    def count_publications(
        self,
        releases: Sequence[Mapping[str, Any]],
        published: Sequence[Published],
        findings: Findings,
    ) -> None:
        """Check that there are as many publications of each release as it says."""
        found: Counter[tuple[str, int, int]] = Counter()
        for one in published:
            found[one.view, one.shard, one.number] += len(one.rows)
        for entry in releases:
            place = place_of(entry)
            if found[place] == entry["publications"]:
                continue
            view, shard, number = place
            is_gone = not found[place]
            findings.add(
                Mismatch(
                    "publication", f"release {number} of shard {shard}", view,
                    seen=f"{found[place]} rows", expected=f"{entry['publications']} rows",
                    cause="it is gone" if is_gone else "the file was changed",
                    kind=Kind.LOST if is_gone else "",
                )
            )  # fmt: skip
