"""Publish: what the kernel published goes to the online store and to the offline log.

Per bundle there is one write: of each (view, shard) the newest publication of every entity,
together with the newest frontier. The store orders writes by itself, so a repeated bundle does no
harm. One that overtook the bundle before it is refused (`LostPublications`), as is one that comes
to a store that has lost writes: its frontier would say that what is missing is there. What then
happens, and when the store is away, stands in `pipelines.publish.store_writer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.definitions.views import FeatureView, Project
from tidemill.features.kernel.advance import NULLS, VALUES
from tidemill.features.kernel.prepare import KEY, matrix_of, nulls_of
from tidemill.pipelines.publish.store_writer import GIVE_UP_AFTER_US, StoreWriter
from tidemill.pipelines.stream.answer_join import column_arrays
from tidemill.pipelines.stream.wire_format import Published, unpack_publications
from tidemill.serving.files.atomic_write import written_whole
from tidemill.serving.files.segment_names import segment_prefix
from tidemill.serving.online import publications
from tidemill.serving.online.database import Parcel
from tidemill.serving.registry.registration import OFFLINE
from tidemill.serving.stores.online_places import OnlinePlace, open_database


def named_publications(view: FeatureView, kernel: pa.RecordBatch) -> pa.RecordBatch:
    """Name the columns of kernel publications: `serving.online.publications.schema`."""
    values, nulls = matrix_of(kernel.column(VALUES)), nulls_of(kernel.column(NULLS))
    arrays = column_arrays(view.columns, values, nulls)
    return pa.RecordBatch.from_arrays(
        [
            kernel.column(KEY).cast(pa.binary()),
            kernel.column("event_timestamp"),
            kernel.column("valid_until"),
            kernel.column("revision"),
            *(arrays[column.name] for column in view.columns),
        ],
        schema=publications.schema(view),
    )


def newest_per_entity(kernel: pa.RecordBatch) -> pa.RecordBatch:
    """Keep each entity's newest publication by (event_timestamp, revision).

    Where it came more than once it stays so: whether the two say the same is the store's to judge.
    """
    if kernel.num_rows < 2:
        return kernel
    order = pc.sort_indices(
        kernel,
        sort_keys=[
            (KEY, "ascending"),
            ("event_timestamp", "ascending"),
            ("revision", "ascending"),
        ],
    )
    ordered = kernel.take(order)
    keys = ordered.column(KEY)
    last = np.ones(ordered.num_rows, np.bool_)
    last[:-1] = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1)).to_numpy(
        zero_copy_only=False
    )
    ends = np.flatnonzero(last)
    newest = ends[np.searchsorted(ends, np.arange(ordered.num_rows))]
    times, revisions = (ordered.column(name).to_numpy() for name in ("event_timestamp", "revision"))
    return ordered.filter(pa.array((times == times[newest]) & (revisions == revisions[newest])))


def joined_releases(releases: Iterable[Published]) -> list[Published]:
    """Join what releases of one (view, shard) published, in whatever order they come.

    Each release goes on where the one before it ended, so those of a bundle are as a rule one
    run; it goes on from where its first release did. A release of the whole shard starts one that
    needs nothing before it, and what older releases published goes along. Where a release in
    between is missing a run ends, so that the store can see that.

    Args:
        releases: The releases; at least one.

    Returns:
        The runs, each as one release, in their order.
    """
    # In eager mode one that only answers may leave the frontier where it was: it comes after.
    ordered = sorted(
        releases, key=lambda one: (one.frontier_us, one.since_us is not None, one.since_us or 0)
    )
    runs = [ordered[:1]]
    for one in ordered[1:]:
        if one.since_us is None:
            runs = [[release for run in runs for release in run] + [one]]
        elif one.since_us <= runs[-1][-1].frontier_us:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [
        run[-1]._replace(since_us=_since(run), rows=pa.concat_batches([one.rows for one in run]))
        for run in runs
    ]


def _runs(releases: Iterable[Published]) -> list[Published]:
    """Join the releases of each (view, shard)."""
    of_shards: dict[tuple[int, int], list[Published]] = {}
    for one in releases:
        of_shards.setdefault((one.view, one.shard), []).append(one)
    return [run for mine in of_shards.values() for run in joined_releases(mine)]


def _since(run: list[Published]) -> int | None:
    known = [one.since_us for one in run if one.since_us is not None]
    return min(known) if len(known) == len(run) else None


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(str)
class _Publish(beam.DoFn):
    def __init__(
        self,
        project: Project,
        root: Path,
        place: OnlinePlace,
        shards: int,
        keep_log: bool,
        changes: bool,
        segment: int,
        run: str | None,
        give_up_after_us: int,
    ) -> None:
        self._project = project
        self._root = root
        self._place = place
        self._shards = shards
        self._keep_log = keep_log
        self._changes = changes
        self._segment = segment
        self._prefix = segment_prefix(segment)
        self._run = run
        self._give_up_after_us = give_up_after_us
        self._bundle: list[Published] = []

    def setup(self) -> None:
        self._database = open_database(self._place)
        self._writer = StoreWriter(self._database, self._project, self._run, self._give_up_after_us)

    def teardown(self) -> None:
        self._database.close()

    def start_bundle(self) -> None:
        self._bundle = []

    def process(self, element: bytes) -> Iterator[str]:
        self._bundle.append(unpack_publications(element, self._project))
        yield from ()

    def finish_bundle(self) -> None:
        bundle, self._bundle = self._bundle, []
        runs = _runs(bundle)
        if runs:
            self._writer.write([self._parcel(run) for run in runs])
        news = runs
        if not all(one.is_news for one in bundle):
            news = _runs([one for one in bundle if one.is_news])
        if self._changes:
            from tidemill.pipelines.history.offline_history import append_changes

            for run in news:
                append_changes(
                    self._project, self._root / OFFLINE, self._shards, run, self._segment
                )
        if self._keep_log:
            for run in news:
                if run.rows.num_rows:
                    view = self._project.views[run.view]
                    named = named_publications(view, run.rows)
                    self._write_log(view, run.shard, run.frontier_us, named)

    def _parcel(self, run: Published) -> Parcel:
        view = self._project.views[run.view]
        return publications.parcel_of(
            self._project.name,
            view,
            named_publications(view, newest_per_entity(run.rows)),
            shard=run.shard,
            shard_count=self._shards,
            since_us=run.since_us,
            frontier_us=run.frontier_us,
        )

    def _write_log(
        self, view: FeatureView, shard: int, frontier: int, rows: pa.RecordBatch
    ) -> None:
        folder = self._root / "publications" / view.name
        # A shard publishes at a frontier once, so a bundle that is repeated replaces itself.
        path = folder / f"{self._prefix}{frontier:020d}-{shard:05d}.parquet"
        with written_whole(path) as unfinished:
            pq.write_table(pa.Table.from_batches([rows]), unfinished)


@dataclass(eq=False)
class Publish(beam.PTransform):
    """Publications (`Featurize`'s output of that name) to the online store and the offline log.

    Attributes:
        project: The project; it must be registered in the store.
        root: The run's folder.
        place: Where the online store is.
        shards: How many shards each view has.
        keep_log: Keep every publication under ``root/publications`` too.
        changes: Whether the publications are every change point, and go on with the offline log.
        segment: The segment of the stream (`pipelines.recovery.handoff`) that publishes.
        run: Names the run (`pipelines.stream.featurize.FeaturizeOptions`) whose operators can
            publish a whole shard again where the store has lost writes; None where there are none.
        give_up_after_us: How long the store may be away before the bundle fails.
    """

    project: Project
    root: Path
    place: OnlinePlace
    shards: int
    keep_log: bool = True
    changes: bool = False
    segment: int = 0
    run: str | None = None
    give_up_after_us: int = GIVE_UP_AFTER_US

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, published: beam.PCollection) -> beam.PCollection:
        """Wire the stage."""
        return published | "Publish" >> beam.ParDo(
            _Publish(
                self.project,
                self.root,
                self.place,
                self.shards,
                self.keep_log,
                self.changes,
                self.segment,
                self.run,
                self.give_up_after_us,
            )
        )
