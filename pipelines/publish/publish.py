"""Publish: write the kernel's publications to the online store and to the offline log.

A bundle makes one write: for each (view, shard) the newest publication of every entity, and the
newest frontier. The store checks the mark that they build on, so a repeated bundle changes nothing.
The logs of publications get an output for each release, named by its number, however bundles are
cut.
The store refuses a bundle that comes before its predecessor, or after lost writes
(`LostPublications`),
because the new frontier would claim that the missing rows are there.
`pipelines.publish.store_writer` handles this, and a store that is unavailable.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import apache_beam as beam

from tidemill.features.definitions import Project
from tidemill.pipelines.config.online_section import GIVE_UP_AFTER_US
from tidemill.pipelines.io.output_parts import PartWriter
from tidemill.pipelines.publish.changes import append_changes
from tidemill.pipelines.publish.newest_rows import joined_release, newest_per_entity, runs_by_shard
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.publish.store_figures import storing
from tidemill.pipelines.publish.store_writer import StoreWriter
from tidemill.pipelines.stream.output_folders import publications_of
from tidemill.pipelines.stream.publications import named_publications, publications_output
from tidemill.pipelines.stream.wire_format import Published, unpack_publications
from tidemill.pipelines.telemetry.stage_figures import NO_FIGURES, FiguresPlace
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.parcels import parcels_of
from tidemill.serving.stores.online_places import OnlinePlace


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(str)
@dataclass(eq=False)
class Publish(beam.DoFn):
    """Writes publications (an output of `Featurize`) to the online store and the offline log.

    Attributes:
        project: The project; it must be registered in the store.
        root: The stream's folder.
        offline_root: The folder of the offline logs.
        place: The place of the online store.
        shards: The number of shards of each view.
        fills: The fills that the run writes, and its token.
        changes: Whether the publications are every change point and continue the offline log.
        segment: The segment of the stream that epoch 0 is (`pipelines.io.epochs`).
        run: The run's name (`pipelines.stream.featurize_options.FeaturizeOptions`); the operators
            of this run can publish a whole shard again. None if there are no operators.
        give_up_after_us: How long the store may be unavailable before the bundle fails.
        figures: Where the stage reports what it does.
    """

    project: Project
    root: Path
    offline_root: Path
    place: OnlinePlace
    shards: int
    fills: RunFills
    changes: bool = False
    segment: int = 0
    run: str | None = None
    give_up_after_us: int = GIVE_UP_AFTER_US
    figures: FiguresPlace = NO_FIGURES

    def setup(self) -> None:
        """Open the store."""
        self._database = open_database(self.place)
        self._writer = StoreWriter(
            self._database, self.project, self.fills, self.run, self.give_up_after_us
        )

        self._logs: dict[str, PartWriter] = {}

    def teardown(self) -> None:
        """Close the store and the logs."""
        self._database.close()
        for log in self._logs.values():
            log.close()

    def start_bundle(self) -> None:
        """Begin a bundle."""
        self._bundle: list[Published] = []

    def process(self, element: bytes) -> Iterator[str]:
        """Collect the publications of a release."""
        self._bundle.append(unpack_publications(element, self.project))
        yield from ()

    def finish_bundle(self) -> None:
        """Publish the bundle."""
        bundle, self._bundle = self._bundle, []
        runs = runs_by_shard(bundle)
        if runs:
            with storing(self.figures.here(), bundle):
                self._writer.write([parcel for run in runs for parcel in self._parcels(run)])
        news = runs
        if not all(one.is_news for one in bundle):
            news = runs_by_shard([one for one in bundle if one.is_news])
        for run in news:
            for epoch, of_epoch in itertools.groupby(run, key=attrgetter("epoch")):
                releases, segment = list(of_epoch), self.segment + epoch
                if self.changes:
                    append_changes(self.project, self.offline_root, self.shards, releases, segment)
                self._log(releases[0].view, releases, segment)

    def _parcels(self, releases: list[Published]) -> list[Parcel]:
        run, fills = joined_release(releases), self._writer.fills
        view = self.project.view(run.view)
        is_whole = run.mark_before is None
        return parcels_of(
            fills.fills[view.name],
            fills.writer(view.name),
            view,
            named_publications(view, newest_per_entity(run.rows)),
            shard=run.shard,
            mark_before=run.mark_before,
            mark=run.mark,
            frontier_us=run.frontier_us,
            attempt=run.attempt,
            marks_between=() if is_whole else tuple(one.mark for one in releases[:-1]),
        )

    def _log(self, view: str, releases: list[Published], segment: int) -> None:
        """Append the publications of releases to the log of publications."""
        definition = self.project.view(view)
        if view not in self._logs:
            self._logs[view] = PartWriter(publications_of(self.root, view).path)
        self._logs[view].append(
            segment,
            [
                publications_output(definition, release.rows, release.shard, release.number)
                for release in releases
                if release.rows.num_rows
            ],
        )
