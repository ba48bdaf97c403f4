"""The online store: one row per entity, the newest publication wins, a read says how old it is.

`database` states the promises of every backend. Each backend has its own folder and does not import
the others; Feast and Redis are imported when one of their stores is opened.
"""

from __future__ import annotations

from tidemill.serving.online.backends import missing_guarantees, open_database
from tidemill.serving.online.database import OnlineDatabase, Parcel, Snapshot
from tidemill.serving.online.fills import Fill, Holder, NewFill, Writer
from tidemill.serving.online.parcels import online_rows, parcels_of
from tidemill.serving.online.reader import OnlineReader, OnlineReading, finish_anchored
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch

__all__ = [
    "Fill",
    "Frontiers",
    "Holder",
    "KeySpace",
    "NewFill",
    "OnlineDatabase",
    "OnlineReader",
    "OnlineReading",
    "Parcel",
    "Row",
    "RowBatch",
    "Snapshot",
    "Writer",
    "finish_anchored",
    "missing_guarantees",
    "online_rows",
    "open_database",
    "parcels_of",
]
