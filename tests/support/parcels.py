"""A small project for the tests of the store: parcels scanned at depots, by courier and depot."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tests.support.fills import current_target, mark_of
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Project,
    Request,
    col,
    count,
    last,
    last_k,
    mean,
    sum,
    time_since_last,
)
from tidemill.features.feast_objects import REVISION, VALID_UNTIL
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.parcels import online_rows, parcels_of
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.publications import schema

if TYPE_CHECKING:
    from tidemill.serving.online.feast_rows import FeastRow

SCANS = EventStream(
    "scans",
    schema={
        "scan": "string",
        "at": "timestamp",
        "courier": "string",
        "depot": "int64",
        "grams": "int64",
        "metres": "float64",
        "signed": "bool",
        "due": "timestamp",
    },
    event_time="at",
    event_id="scan",
)
COURIER = Entity("courier")
DEPOT = Entity("depot", dtype="int64")

BY_COURIER = FeatureView(
    "by_courier",
    entity=COURIER,
    stream=SCANS,
    hop="5m",
    max_staleness="10m",
    features={
        "scans_1d": count(over="1d"),
        "grams_1d": sum(col("grams"), over="1d"),
        "metres_1d": mean(col("metres"), over="1d"),
        "last_metres": last_k(col("metres"), over="1d", k=2),
        "idle": time_since_last(over="1d"),
        "signed": last(col("signed"), over="1d"),
        "due": last(col("due"), over="1d"),
    },
)
BY_DEPOT = FeatureView(
    "by_depot", entity=DEPOT, stream=SCANS, hop="1h", features={"scans_1d": count(over="1d")}
)


def project(*views: FeatureView) -> Project:
    """The project with these views; both of them by default."""
    return Project(
        "parcels",
        request=Request(
            "quotes",
            schema={"quote": "string", "at": "timestamp", "courier": "string", "depot": "int64"},
            request_time="at",
            request_id="quote",
        ),
        views=views or (BY_COURIER, BY_DEPOT),
    )


PARCELS = project()
_releases = itertools.count()
COURIER_SPACE = KeySpace.of("parcels", BY_COURIER)
DEPOT_SPACE = KeySpace.of("parcels", BY_DEPOT)


def courier_rows(*rows: dict[str, Any]) -> pa.RecordBatch:
    """Publications of the courier view; what a row leaves out is null, or a harmless time."""
    default: dict[str, Any] = {"event_timestamp": 1_000, "valid_until": 10**15, "revision": 1}
    wanted = schema(BY_COURIER)
    full = []
    for row in rows:
        named = {f"by_courier__{k}" if k not in wanted.names else k: v for k, v in row.items()}
        full.append({name: {**default, **named}.get(name) for name in wanted.names})
    return pa.RecordBatch.from_pylist(full, schema=wanted)


def depot_rows(*rows: tuple[int, int, int, int]) -> pa.RecordBatch:
    """Publications of the depot view: depot, event timestamp, revision, scans_1d."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "entity_key": str(depot).encode(),
                "event_timestamp": time,
                "valid_until": 10**15,
                "revision": revision,
                "by_depot__scans_1d": scans,
            }
            for depot, time, revision, scans in rows
        ],
        schema=schema(BY_DEPOT),
    )


def view_of(rows: pa.RecordBatch) -> FeatureView:
    """Return the view that publications belong to."""
    return BY_COURIER if "by_courier__idle" in rows.schema.names else BY_DEPOT


def publish(
    database: OnlineDatabase,
    view: FeatureView,
    rows: pa.RecordBatch,
    *,
    shard: int = 0,
    shards: int = 1,
    frontier_us: int = 5_000,
) -> int:
    """Publish rows as the complete content of a shard of a view."""
    target = current_target(database, KeySpace.of("parcels", view), shards)
    (parcel,) = parcels_of(
        target.fill,
        target.writer,
        view,
        rows,
        shard=shard,
        mark_before=None,
        mark=mark_of(frontier_us, f"publication {next(_releases)}"),
        frontier_us=frontier_us,
    )
    return database.publish([parcel])[0]


def feast_rows(view: FeatureView, rows: pa.RecordBatch | pa.Table) -> list[FeastRow]:
    """Publications as the rows that Feast's ``online_write_batch`` takes."""
    from tidemill.serving.online import feast_rows as stored

    # The rows are the same in every project's key space.
    of = stored.StoredView(KeySpace.of("", view), (VALID_UNTIL, REVISION), judged=True)
    return stored.feast_rows(of, online_rows(view, rows, None))
