"""Publish: write the kernel's publications to the online store, in the bundle of their operators.

A bundle makes one write: for each (view, shard) the newest publication of every entity, and the
newest frontier. The store checks the mark that they build on, so a repeated bundle changes nothing,
and says so if it has lost writes (`LostPublications`), because the new frontier would claim that
the missing rows are there. Then the whole shard is written, from the operator's state.
`pipelines.publish.store_writer` handles this, and a store that is unavailable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.features.definitions import Project
from tidemill.pipelines.config.online_section import GIVE_UP_AFTER_US
from tidemill.pipelines.publish.newest_rows import (
    joined_release,
    newest_per_entity,
    runs_by_shard,
)
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.publish.store_figures import storing
from tidemill.pipelines.publish.store_writer import StoreWriter
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.shard_store import WholeShard
from tidemill.pipelines.stream.wire_format import Published
from tidemill.pipelines.telemetry.stage_figures import NO_FIGURES, FiguresPlace
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.parcels import parcels_of
from tidemill.serving.stores.online_places import OnlinePlace


@dataclass(frozen=True)
class PublishToStore:
    """Where the operators of a run publish (`pipelines.stream.shard_store.ShardStorePlace`).

    Attributes:
        project: The project; it must be registered in the store.
        place: The place of the online store.
        fills: The fills that the run writes, and its token.
        give_up_after_us: How long the store may be unavailable before the bundle fails.
        figures: Where the stage reports what it does.
    """

    project: Project
    place: OnlinePlace
    fills: RunFills
    give_up_after_us: int = GIVE_UP_AFTER_US
    figures: FiguresPlace = NO_FIGURES

    def open(self) -> OperatorsStore:
        """Open the store."""
        return OperatorsStore(self)


class OperatorsStore:
    """The online store of a run, as its operators write it; one for each thread.

    Args:
        of: Where it is, and what is written.
    """

    def __init__(self, of: PublishToStore) -> None:
        self._project, self._figures = of.project, of.figures.here()
        self._database = open_database(of.place)
        self._writer = StoreWriter(self._database, of.fills, of.give_up_after_us)

    def close(self) -> None:
        """Disconnect."""
        self._database.close()

    def write(self, releases: Sequence[Published], whole: WholeShard) -> None:
        """Write the publications of a bundle (`pipelines.stream.shard_store.ShardStore`).

        Raises:
            StoreError: As `StoreWriter.write`.
        """
        parcels = [
            parcel for run in runs_by_shard(releases) for parcel in self._parcels(run, run[:-1])
        ]
        if parcels:
            with storing(self._figures, releases):
                self._writer.write(
                    parcels, lambda view, shard: self._parcels([whole(view, shard)], ())
                )

    def _parcels(self, run: Sequence[Published], between: Sequence[Published]) -> list[Parcel]:
        joined, fills = joined_release(run), self._writer.fills
        view = self._project.view(joined.view)
        return parcels_of(
            fills.fills[view.name],
            fills.writer(view.name),
            view,
            named_publications(view, newest_per_entity(joined.rows)),
            shard=joined.shard,
            mark_before=joined.mark_before,
            mark=joined.mark,
            frontier_us=joined.frontier_us,
            attempt=joined.attempt,
            marks_between=tuple(one.mark for one in between),
        )
