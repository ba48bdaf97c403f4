"""Any other online store of Feast's (Postgres, DynamoDB, Bigtable, ...), by its generic write path.

`FeastDatabase` writes publications through the store's own ``online_write_batch``, so Feast reads
them as it reads its own rows. The store alone decides which of two writes wins, and it has no place
for a frontier. So these promises of `serving.online.database` do not hold, and the program says so
when it starts (`LOST_GUARANTEES`):

* **order**: a late or repeated write may replace a newer value by an older one. Feast's SQLite
  keeps the last write; its Redis compares timestamps, but reads first and writes after. This class
  keeps the newest row per entity of one call; the calls of several writers are in no order;
* **corrections**: a higher revision at the same event timestamp may be dropped (Redis) or
  overwritten by the lower one that comes after it (SQLite); contradictions between two writers are
  not detected;
* **atomicity**: a reader may see half of a call, and views of different instants;
* **statuses**: there is no frontier, so nothing is ever ``OUTSIDE_MAX_AGE``: the last values of a
  stopped stream read as fresh. The direct reader and `tidemill verify` need frontiers, and refuse.
  For an entity that was never seen, Feast's SQLite says ``NOT_FOUND``, its Redis ``PRESENT`` with
  nulls;
* **lost writes**: a store that was restarted from an old dump is not detected;
* **fills and tokens**: a view has one set of rows. Whatever starts over overwrites what readers
  see, and two writers at once are not detected.

A changed definition does not overwrite the rows of the old one: it is registered under another name
until it is promoted (`serving.registry.registration`). Promoted, it overwrites them.

Feast is imported when the database is first used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tidemill.features.errors import StoreError, StoreUnavailable
from tidemill.serving.online.database import Parcel, Snapshot
from tidemill.serving.online.fills import Fill, FillState, Holder, NewFill, PartState, Writer
from tidemill.serving.online.per_thread import PerThread
from tidemill.serving.online.refusals import no_key_space
from tidemill.serving.online.rows import KeySpace, Row, RowBatch
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.online_places import FeastPlace
from tidemill.serving.stores.places import StorePlaces

if TYPE_CHECKING:
    import feast
    from feast.infra.online_stores.online_store import OnlineStore

    from tidemill.serving.online.feast_rows import StoredView

LOST_GUARANTEES: Final = (
    "an older publication may overwrite a newer one (repeats, several writers)",
    "a correction at the same event timestamp may be lost, a contradiction is not reported",
    "rows of one release do not become visible together, nor those of several views",
    "no frontier is kept: a read never says OUTSIDE_MAX_AGE, so a stopped stream reads as fresh",
    "what a never-seen entity reads as is the store's own: Redis calls it PRESENT, with nulls",
    "the direct reader, `tidemill features` and `tidemill verify` need frontiers, and refuse",
    "a store that lost writes is not noticed",
    "a history that is written again overwrites what readers see, row by row",
    "of two writers at once neither is refused",
    "a promoted definition writes over the rows of the one before it",
)
"""Promises that do not hold for a store of Feast's that Tidemill has no database for."""

_ONLY_FILL: Final = "0" * 16

_TRANSIENT: Final = {"ConnectionError", "TimeoutError"}
"""Names of the clients' error classes that are transient, like any `OSError`."""


@dataclass(frozen=True)
class _Opened:
    config: feast.RepoConfig
    registry: feast.FeatureStore
    store: OnlineStore
    views: dict[str, tuple[feast.FeatureView, StoredView]]


# By the text of the place (a place is not hashable), then by project.
_stores = PerThread[str, dict[str, _Opened]]()


@dataclass(frozen=True)
class FeastDatabase:
    """A store of Feast's as an online database (`serving.online.database.OnlineDatabase`).

    Its views are those of the project's registry, so call
    `serving.registry.registration.open_store` first.

    Attributes:
        place: The store, and the root of its registry.
    """

    place: FeastPlace

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return f"Feast's online store of type {self.place.type!r}"

    def create(self, spaces: Sequence[KeySpace]) -> None:
        """Make the tables that the store needs for views."""
        self._update(spaces, keep=True)

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove the tables that the store has for views."""
        self._update(spaces, keep=False)

    def spaces(self) -> list[str]:
        """Refuse: Feast's stores cannot list their tables."""
        raise StoreError(f"{self.name} cannot list its key spaces; {_INSTEAD}")

    def fills(self, spaces: Sequence[KeySpace]) -> list[Fill]:
        """Return nothing: Feast's stores keep no records of fills."""
        return []

    def begin_fills(self, fills: Sequence[NewFill]) -> list[Fill]:
        """Return fills that stand for the only rows of the views, which readers see already."""
        return [new.begun(_ONLY_FILL, FillState.CURRENT) for new in fills]

    def drop_fills(self, fills: Sequence[Fill]) -> None:
        """Do nothing: the only rows of the views stay."""

    def take_token(
        self, fills: Sequence[Fill], holder: Holder, *, take_over: bool = False
    ) -> Writer:
        """Return a token, which the store does not check."""
        return Writer(1, holder)

    def restore(self, fills: Sequence[Fill], writer: Writer) -> None:
        """Do nothing: there are no records that could be lost."""

    def part_states(self, fills: Sequence[Fill]) -> list[list[PartState]]:
        """Return that no part has a mark or a frontier."""
        return [[PartState(None, None)] * fill.parts for fill in fills]

    def withdraw(self, parcel: Parcel, found: PartState) -> None:
        """Do nothing: there are no frontiers."""

    def switch(
        self, fills: Sequence[Fill], writer: Writer, *, take_over: bool = False
    ) -> list[Fill]:
        """Do nothing: readers see what is written at once."""
        return list(fills)

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write the newest publication of each entity, and return how many entities these are."""
        from tidemill.serving.online.feast_rows import feast_rows

        if not len(rows):
            return 0
        opened = self._opened(space.project)
        table, view = self._view(opened, space)
        newest = _newest(rows)
        with self._named_errors(f"write {len(newest)} rows of view {space.view!r}"):
            opened.store.online_write_batch(opened.config, table, feast_rows(view, newest), None)
        return len(newest)

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        """Write parcels in their order; their marks and frontiers are not kept."""
        return [self.write(parcel.space, parcel.rows) for parcel in parcels]

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Refuse: a row without a frontier has no instant, so its age is unknown."""
        raise StoreError(
            f"{self.name} keeps no frontiers, so it cannot be read as of an instant; {_INSTEAD}"
        )

    def scan(self, fill: Fill) -> Iterator[list[Row]]:
        """Refuse: a store of Feast's is read by key only."""
        raise StoreError(f"{self.name} cannot be read but by key; {_INSTEAD}")

    def record_cuts(self, fills: Sequence[Fill]) -> None:
        """Do nothing: there are no records of fills."""

    def forget(self, fills: Sequence[Fill], keys: Sequence[bytes]) -> None:
        """Return None: Feast's stores cannot remove rows by key."""

    def close(self) -> None:
        """Forget the stores that this thread has opened."""
        _stores.pop(repr(self.place))

    def _opened(self, project: str) -> _Opened:
        by_project = _stores.get(repr(self.place)) or {}
        opened = by_project.get(project)
        if opened is None:
            import feast
            from feast.infra.online_stores.helpers import get_online_store_from_config

            place = self.place
            places = StorePlaces.below(place.root, online=place, registry=place.registry)
            config = repo_config(project, places, clock="wall")
            opened = _Opened(
                config=config,
                registry=feast.FeatureStore(config=config),
                store=get_online_store_from_config(config.online_store),
                views={},
            )
            by_project[project] = opened
            _stores.put(repr(self.place), by_project)
        return opened

    def _view(self, opened: _Opened, space: KeySpace) -> tuple[feast.FeatureView, StoredView]:
        found = opened.views.get(space.name)
        if found is None:
            from tidemill.serving.online.feast_rows import stored_view

            for table in opened.registry.list_feature_views():
                view = stored_view(opened.config, table)
                if view.space == space:
                    found = opened.views[space.name] = (table, view)
        if found is None:
            raise no_key_space(self.name, space)
        return found

    def _update(self, spaces: Sequence[KeySpace], *, keep: bool) -> None:
        for space in spaces:
            opened = self._opened(space.project)
            table, _ = self._view(opened, space)
            with self._named_errors(f"{'make' if keep else 'remove'} {table.name}"):
                opened.store.update(
                    config=opened.config,
                    tables_to_delete=[] if keep else [table],
                    tables_to_keep=[table] if keep else [],
                    entities_to_delete=[],
                    entities_to_keep=[],
                    partial=True,
                )

    @contextmanager
    def _named_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            names = {kind.__name__ for kind in type(error).__mro__}
            transient = isinstance(error, OSError) or bool(names & _TRANSIENT)
            raise (StoreUnavailable if transient else StoreError)(
                f"{self.name} could not {doing}: {type(error).__name__}: {error}"
            ) from error


_INSTEAD: Final = (
    "read through Feast's SDK (FeatureStore.get_online_features), or keep the features in a store "
    "of type sqlite or redis"
)


def _newest(rows: RowBatch) -> RowBatch:
    order = np.lexsort((rows.revisions, rows.event_timestamps)).tolist()
    newest = {rows.keys[at]: at for at in order}
    if len(newest) == len(rows):
        return rows
    every = rows.rows()
    return RowBatch.of([every[at] for at in sorted(newest.values())], rows.shard)
