"""The rows of a forgotten entity in the online store, and the records of its fills."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from tidemill.features.errors import NoKeySpace
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.subject import Subject
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import Fill
from tidemill.serving.online.rows import online_keys
from tidemill.serving.registry.state import named_spaces
from tidemill.serving.stores.online_places import FeastPlace, SqlitePlace


def check_store(config: Configuration) -> None:
    """Check that the online store can be reached, before anything is done.

    Raises:
        StoreError: It cannot be read.
    """
    place = config.online_store
    if isinstance(place, FeastPlace) or (
        isinstance(place, SqlitePlace) and not place.path.exists()
    ):
        return
    database = open_database(place)
    try:
        with contextlib.suppress(NoKeySpace):
            database.spaces()
    finally:
        database.close()


def remove_from_store(
    config: Configuration, subject: Subject, renewed: Mapping[str, str]
) -> int | None:
    """Remove the rows of a subject from the online store; repeating it does nothing.

    All fills of all definitions of the entity's views lose them. A fill's record names the digest
    of the rows that it was begun with: where that is another now, the record gets it.

    Args:
        config: The configuration.
        subject: The subject.
        renewed: Digests of rows below cuts, before to after.

    Returns:
        How many were removed; None if the store cannot remove rows by key.

    Raises:
        StoreError: It cannot be written.
    """
    place = config.online_store
    if isinstance(place, FeastPlace):
        return None
    if isinstance(place, SqlitePlace) and not place.path.exists():
        return 0
    database = open_database(place)
    try:
        return _remove(config, database, subject, renewed)
    finally:
        database.close()


def _remove(
    config: Configuration,
    database: OnlineDatabase,
    subject: Subject,
    renewed: Mapping[str, str],
) -> int | None:
    project = config.project
    views = {view.name for view in project.views if view.entity.name == subject.entity.name}
    try:
        spaces = list(named_spaces(database, project.name))
    except NoKeySpace:
        return 0
    fills = database.fills(spaces)
    changed = [made for fill in fills if (made := _recut(fill, renewed)) is not fill]
    if changed:
        database.record_cuts(changed)
    kind = pa.int64() if isinstance(subject.key, int) else pa.string()
    keys = online_keys(subject.entity.join_key, pa.array([subject.key], kind))
    return database.forget([fill for fill in fills if fill.space.view in views], keys)


def _recut(fill: Fill, renewed: Mapping[str, str]) -> Fill:
    """Return a fill with the digest that the rows below its cut have now."""
    try:
        cuts = json.loads(fill.cuts)
        digest = cuts["digest"]
    except (ValueError, KeyError, TypeError):
        return fill
    if digest not in renewed:
        return fill
    return replace(fill, cuts=json.dumps({**cuts, "digest": renewed[digest]}, sort_keys=True))
