"""Publish: what the kernel published goes to the online store and to the offline log.

Per bundle and (view, shard) there is one write: the newest publication of each entity, together
with the newest frontier. The store orders writes by itself, so a repeated or delayed bundle does
no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.definitions import FeatureView, Project
from features.kernel.advance import NULLS, VALUES
from features.kernel.prepare import KEY, matrix_of, nulls_of
from pipelines.answers import column_arrays
from pipelines.featurize import unpack_publications
from serving import publications
from serving.online_places import OnlinePlace, open_database


def named_publications(view: FeatureView, kernel: pa.RecordBatch) -> pa.RecordBatch:
    """Name the columns of kernel publications: `serving.publications.schema`."""
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
    """Keep each entity's newest publication by (event_timestamp, revision)."""
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
    return ordered.filter(pa.array(last))


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(str)
class _Publish(beam.DoFn):
    def __init__(
        self, project: Project, root: Path, place: OnlinePlace, shards: int, keep_log: bool
    ) -> None:
        self._project = project
        self._root = root
        self._place = place
        self._shards = shards
        self._keep_log = keep_log
        self._bundle: dict[tuple[int, int], tuple[int, list[pa.RecordBatch]]] = {}

    def setup(self) -> None:
        self._database = open_database(self._place)

    def teardown(self) -> None:
        self._database.close()

    def start_bundle(self) -> None:
        self._bundle = {}

    def process(self, element: bytes) -> Iterator[str]:
        view, shard, frontier, rows = unpack_publications(element)
        newest, batches = self._bundle.get((view, shard), (frontier, []))
        self._bundle[view, shard] = (max(newest, frontier), [*batches, rows])
        yield from ()

    def finish_bundle(self) -> None:
        bundle, self._bundle = self._bundle, {}
        for (index, shard), (frontier, batches) in bundle.items():
            view = self._project.views[index]
            everything = pa.concat_batches(batches)
            named = named_publications(view, newest_per_entity(everything))
            publications.write_publications(
                self._database,
                self._project.name,
                view,
                named,
                shard=shard,
                shard_count=self._shards,
                frontier_us=frontier,
            )
            if self._keep_log and everything.num_rows:
                self._write_log(view, shard, frontier, named_publications(view, everything))

    def _write_log(
        self, view: FeatureView, shard: int, frontier: int, rows: pa.RecordBatch
    ) -> None:
        folder = self._root / "publications" / view.name
        folder.mkdir(parents=True, exist_ok=True)
        # Several bundles may stand at one frontier (eager mode); a repeated one replaces itself,
        # also if a restart in between has changed the order of its entities.
        names = (publications.ENTITY_KEY, "event_timestamp", "revision")
        rows = rows.take(pc.sort_indices(rows, [(name, "ascending") for name in names]))
        digest = hashlib.sha256(rows.serialize()).hexdigest()[:16]
        path = folder / f"{frontier:020d}-{shard:05d}-{digest}.parquet"
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(pa.Table.from_batches([rows]), unfinished)
        unfinished.replace(path)


@dataclass(eq=False)
class Publish(beam.PTransform):
    """Publications (`Featurize`'s output of that name) to the online store and the offline log.

    Attributes:
        project: The project; it must be registered in the store.
        root: The run's folder.
        place: Where the online store is.
        shards: How many shards each view has.
        keep_log: Keep every publication under ``root/publications`` too.
    """

    project: Project
    root: Path
    place: OnlinePlace
    shards: int
    keep_log: bool = True

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, published: beam.PCollection) -> beam.PCollection:
        """Wire the stage."""
        return published | "Publish" >> beam.ParDo(
            _Publish(self.project, self.root, self.place, self.shards, self.keep_log)
        )
