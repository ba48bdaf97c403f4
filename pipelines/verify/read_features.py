"""The features of entities in the online store, for `tidemill features`.

It reads with `serving.online.reader`, since Feast's SDK hides the values of a stale row and the
frontier; `tidemill verify` checks that the SDK returns the same values. The clock is the published
frontier, as in every replay.
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
        InputError: A key of an int64 entity is not a number.
        StoreError: There is no online store, or it lacks the view's current definition.
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
