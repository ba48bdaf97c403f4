"""Features: what the online store says of some entities, now.

It reads with `serving.online.reader` and not through Feast's SDK: the SDK withholds the numbers of
a stale row and knows no frontier, and whoever looks into the store by hand wants to see both. (That
the SDK gives the same numbers is what `tidemill verify` proves.) The clock is the published
frontier, as in every reading of a replay.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tidemill.features.definitions import INT64, Project
from tidemill.features.errors import InputError
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.reader import OnlineReader
from tidemill.serving.stores.online_places import OnlinePlace


def read_features(project: Project, place: OnlinePlace, view: str, keys: Sequence[str]) -> pa.Table:
    """Read entities from the online store.

    Args:
        project: The project.
        place: Where its online store is.
        view: The view's name.
        keys: Entity keys as texts; those of an int64 entity are decimal numbers.

    Returns:
        The join key, every feature column by name (anchored ones finished), and the columns
        `serving.online.reader.STATUS` and `serving.online.reader.FRONTIER`; ``(keys,)``.

    Raises:
        UnknownColumn: There is no such view.
        InputError: A key of an int64 entity is no number.
        StoreError: There is no online store, or the view's present definition is not in it.
    """
    definition = project.view(view)
    wanted = _typed(definition.entity.dtype, view, keys)
    database = open_database(place)
    reading = OnlineReader(database, project, "replay").read({view: wanted})[view]
    database.close()
    return pa.table(
        [wanted, *reading.columns], names=[definition.entity.join_key, *reading.schema.names]
    )


def _typed(dtype: str, view: str, keys: Sequence[str]) -> pa.Array:
    if dtype != INT64:
        return pa.array(keys, pa.string())
    try:
        return pa.array([int(key) for key in keys], pa.int64())
    except (ValueError, OverflowError, pa.ArrowInvalid) as error:
        raise InputError(
            f"view {view!r}: its entity has int64 keys, found {', '.join(map(repr, keys))}: {error}"
        ) from error
