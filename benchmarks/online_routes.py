"""The ways into an online store that are compared, each with a store of its own to write to.

* **ours**: publications in Arrow become parcels, and one call of the online database writes those
  of all views, as a bundle of the stream does.
* **push** and **write_to_online_store**: Feast's two, into Feast's own store. All views have one
  push source, so a push is one call with one DataFrame; the other is a call for each view, with a
  DataFrame of its own. Feast's views have the features only, ours carry revision and validity
  besides.
* **write_to_online_store, our plug-in**: Feast's call into the ordered store, as a stock client
  writes; with the two technical fields.

SQLite: ours is a write-ahead log with ``synchronous=NORMAL``, which a commit does not wait for the
disk with; Feast's store as it comes keeps a rollback journal with ``synchronous=FULL``, and waits
at each commit. So that durability is equal, Feast's is given our connection's settings
(`equal_durability`); how it does as it comes is stated beside it. Redis keeps nothing on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.measure import AnswersDiffer, Side
from benchmarks.online_workload import (
    Deal,
    Deck,
    Shape,
    card_keys,
    expected_values,
    frames,
    joined_frame,
    publications,
    time_us,
)
from benchmarks.workload import CARD
from tidemill.features.definitions import INT64
from tidemill.features.feast_objects import EVENT_TIMESTAMP, feast_entity, field_name
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import MARK_BYTES, Fill, Holder, NewFill, Writer
from tidemill.serving.online.parcels import parcels_of
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.online.sqlite.connections import create_file, transaction
from tidemill.serving.publications import schema
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.online_places import OnlinePlace, default_place
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.redis_place import RedisPlace

if TYPE_CHECKING:
    import feast

SQLITE: Final = "SQLite"
REDIS: Final = "Redis"
STORES: Final = (SQLITE, REDIS)

OURS: Final = "ours"
PUSH: Final = "push"
WRITE: Final = "write_to_online_store"
PLUG_IN: Final = "write_to_online_store, our plug-in"
AS_IT_COMES: Final = ", as it comes"

_PUSH_SOURCE: Final = "cards_push"
_CARDS_A_READ: Final = 1_000
_CARDS_A_FILL: Final = 1_000


@dataclass
class Route:
    """A way into a store, and what it has written there.

    Attributes:
        name: What figures call it.
        shape: What it writes.
        deck: Deals the cards.
        prepare: Makes what the caller has in hand from a deal: not timed.
        write: Writes it and returns once the store has acknowledged it.
        sdk: Feast's SDK over the store.
        before_read: Does what is missing before the SDK can read; takes the number of the last
            deal.
    """

    name: str
    shape: Shape
    deck: Deck
    prepare: Callable[[Deal], Any]
    write: Callable[[Any], None]
    sdk: feast.FeatureStore
    before_read: Callable[[int], None] | None = None
    _prepared: list[Any] = field(default_factory=list)

    def fill(self) -> None:
        """Write a row for every card, so that every later one is an update."""
        size = min(_CARDS_A_FILL, self.deck.cards)
        for _ in range(self.deck.cards // size):
            self.write(self.prepare(self.deck.deal(size)))

    def side(self, size: int, calls: int) -> Side:
        """Return the side that writes deals of ``size`` cards, ``calls`` at a time; in rows."""

        def setup() -> None:
            self._prepared = [self.prepare(self.deck.deal(size)) for _ in range(calls)]

        def work() -> int:
            for prepared in self._prepared:
                self.write(prepared)
            return calls * size * len(self.shape.views)

        return Side(work, setup)

    def check(self) -> int:
        """Read every card through Feast's SDK and compare with what was written last.

        Returns:
            How many values were compared.

        Raises:
            AnswersDiffer: A value is another one.
        """
        if self.before_read is not None:
            self.before_read(self.deck.dealt)
        compared = 0
        for start in range(0, self.deck.cards, _CARDS_A_READ):
            deals = self.deck.last_deal[start : start + _CARDS_A_READ]
            cards = np.arange(start, start + len(deals))
            found = sdk_values(self.sdk, self.shape, card_keys(cards).to_pylist())
            compared += check_values(self.name, expected_values(self.shape, cards, deals), found)
        return compared


def sdk_values(sdk: feast.FeatureStore, shape: Shape, keys: list[str]) -> dict[str, list[Any]]:
    """Read cards through Feast's SDK: ``view__feature`` to values, the join key among them."""
    found: dict[str, list[Any]] = sdk.get_online_features(
        features=shape.references,
        entity_rows=[{CARD.join_key: key} for key in keys],
        full_feature_names=True,
    ).to_dict()
    return found


def check_values(
    name: str, expected: dict[str, list[int | float]], found: dict[str, list[Any]]
) -> int:
    """Compare values, which must be equal to the bit.

    Returns:
        How many were compared.

    Raises:
        AnswersDiffer: One is another, or is not there.
    """
    compared = 0
    for column, values in expected.items():
        if column not in found or len(found[column]) != len(values):
            raise AnswersDiffer(f"{name}: {column} was not read for {len(values)} cards")
        wrong = [
            (ours, theirs)
            for ours, theirs in zip(values, found[column], strict=True)
            if ours != theirs or type(ours) is not type(theirs)
        ]
        if wrong:
            raise AnswersDiffer(
                f"{name}: {len(wrong)} of {len(values)} values of {column} differ, the first was "
                f"written as {wrong[0][0]!r} and read as {wrong[0][1]!r}"
            )
        compared += len(values)
    return compared


@contextmanager
def server_of(store: str, root: Path) -> Iterator[RedisPlace | None]:
    """Run the Redis of a store, a process below this one, or nothing for SQLite."""
    if store == SQLITE:
        yield None
        return
    from tests.support import redis_server

    with redis_server.running(root / "redis") as server:
        yield server.place


def our_route(shape: Shape, cards: int, root: Path, server: RedisPlace | None) -> Route:
    """Return the way through the online database; ``server`` None is an SQLite file below root."""
    project = shape.project("ours")
    place: OnlinePlace = server or default_place(root / "ours")
    sdk = open_store(project, StorePlaces.below(root / "ours", online=place), clock="replay")
    database = open_database(place)
    fills, writer = open_fills(database, project.name, shape)
    written_until_us: list[int | None] = [None]

    def write(batches: list[pa.RecordBatch]) -> None:
        until_us = int(batches[0].column(EVENT_TIMESTAMP)[0].as_py())
        since_us = written_until_us[0]
        database.publish(
            [
                parcel
                for fill, view, batch in zip(fills, shape.views, batches, strict=True)
                for parcel in parcels_of(
                    fill,
                    writer,
                    view,
                    batch,
                    shard=0,
                    mark_before=None if since_us is None else _mark(since_us),
                    mark=_mark(until_us),
                    frontier_us=until_us,
                )
            ]
        )
        written_until_us[0] = until_us

    return Route(OURS, shape, Deck(cards), lambda deal: publications(shape, deal), write, sdk)


def plug_in_route(shape: Shape, cards: int, root: Path, server: RedisPlace | None) -> Route:
    """Return Feast's own way into the ordered store."""
    project = shape.project("plugged")
    place: OnlinePlace = server or default_place(root / "plugged")
    sdk = open_store(project, StorePlaces.below(root / "plugged", online=place), clock="replay")
    fills, writer = open_fills(open_database(place), project.name, shape)

    def before_read(last_deal: int) -> None:
        # A stock client publishes no frontier, and without one a row has no age and is withheld.
        publish_frontier(open_database(place), fills, writer, shape, time_us(last_deal))

    return Route(
        name=PLUG_IN,
        shape=shape,
        deck=Deck(cards),
        prepare=lambda deal: frames(shape, deal, technical=True),
        write=lambda tables: write_views(sdk, shape, tables),
        sdk=sdk,
        before_read=before_read,
    )


def open_fills(database: OnlineDatabase, project: str, shape: Shape) -> tuple[list[Fill], Writer]:
    """Begin a fill of one shard for each view, and let readers see it."""
    new = [NewFill(KeySpace.of(project, view), shards=1) for view in shape.views]
    fills = database.begin_fills(new)
    writer = database.take_token(fills, Holder("benchmark", "localhost", 0, "benchmarks", 0))
    return database.switch(fills, writer), writer


def publish_frontier(
    database: OnlineDatabase, fills: list[Fill], writer: Writer, shape: Shape, frontier_us: int
) -> None:
    """Publish a frontier of every view, and no rows."""
    database.publish(
        [
            parcel
            for fill, view in zip(fills, shape.views, strict=True)
            for parcel in parcels_of(
                fill,
                writer,
                view,
                schema(view).empty_table(),
                shard=0,
                mark_before=None,
                mark=_mark(frontier_us),
                frontier_us=frontier_us,
            )
        ]
    )


def _mark(frontier_us: int) -> bytes:
    return frontier_us.to_bytes(MARK_BYTES, "big")


def feast_route(
    name: str, shape: Shape, cards: int, root: Path, server: RedisPlace | None
) -> Route:
    """Return one of Feast's ways into Feast's store.

    Args:
        name: `PUSH` or `WRITE`; ends with `AS_IT_COMES` where an SQLite file keeps its settings.
        shape: What is written.
        cards: How many cards there are.
        root: Where registry and file stand, in a directory of this route's own.
        server: The Redis; None is an SQLite file.
    """
    project = "".join(letter for letter in name if letter.isalpha())
    sdk = stock_store(shape, project, root / project, server)
    if server is None and not name.endswith(AS_IT_COMES):
        equal_durability(sdk)

    deck = Deck(cards)
    if name.startswith(PUSH):
        return Route(
            name=name,
            shape=shape,
            deck=deck,
            prepare=lambda deal: joined_frame(shape, deal),
            write=lambda table: sdk.push(_PUSH_SOURCE, table),
            sdk=sdk,
        )
    return Route(
        name=name,
        shape=shape,
        deck=deck,
        prepare=lambda deal: frames(shape, deal, technical=False),
        write=lambda tables: write_views(sdk, shape, tables),
        sdk=sdk,
    )


def write_views(sdk: feast.FeatureStore, shape: Shape, tables: list[Any]) -> None:
    """Write a DataFrame of each view by ``write_to_online_store``."""
    for view, table in zip(shape.views, tables, strict=True):
        sdk.write_to_online_store(view.name, table)


def stock_store(
    shape: Shape, project: str, root: Path, server: RedisPlace | None
) -> feast.FeatureStore:
    """Register a shape's views, as a user of Feast would write them, with Feast's own store."""
    import feast
    from feast.types import Float64, Int64, String

    online = (
        {"type": "sqlite", "path": str(root / "online.db")}
        if server is None
        else {"type": "redis", "connection_string": f"{server.host}:{server.port}"}
    )
    root.mkdir(parents=True)
    sdk = feast.FeatureStore(
        config=feast.RepoConfig(
            project=project,
            provider="local",
            registry=str(root / "registry.db"),
            online_store=online,
            entity_key_serialization_version=3,
            repo_path=root,
        )
    )
    entity = feast_entity(CARD)
    source = feast.PushSource(
        name=_PUSH_SOURCE,
        batch_source=feast.FileSource(
            name="cards", path=str(root / "cards.parquet"), timestamp_field=EVENT_TIMESTAMP
        ),
    )
    views = [
        feast.FeatureView(
            name=view.name,
            entities=[entity],
            schema=[
                feast.Field(name=CARD.join_key, dtype=String),
                *(
                    feast.Field(
                        name=field_name(column),
                        dtype=Int64 if column.dtype == INT64 else Float64,
                    )
                    for column in view.columns
                ),
            ],
            source=source,
        )
        for view in shape.views
    ]
    sdk.apply([entity, *views])
    return sdk


def equal_durability(sdk: feast.FeatureStore) -> None:
    """Give Feast's SQLite store the log, the commits and the cache of our connection."""
    path = Path(sdk.config.online_store.path)
    model = path.with_name("model.db")
    create_file(str(model))
    # Feast opens its connection at the first use and keeps it; it has no setting for this.
    connection = sdk.provider.online_store._get_conn(sdk.config)
    with transaction(str(model), write=False) as ours:
        for pragma in ("journal_mode", "synchronous", "cache_size", "wal_autocheckpoint"):
            (value,) = ours.execute(f"PRAGMA {pragma}").fetchone()
            connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
