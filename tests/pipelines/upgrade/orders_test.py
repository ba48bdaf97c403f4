"""Commands on one root, one after the other: whatever came before, each does what it is to do.

`benchmarks.command_orders` runs every command after every other one.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.support.command_orders import (
    COMMANDS,
    OrdersShop,
    ReplayedOrdersShop,
    covering_walk,
    walk_of_triples,
)
from tests.support.redis_server import running
from tidemill.features.contract import HOUR
from tidemill.features.errors import LostPublications
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.online.sqlite.scripts import rows_table
from tidemill.serving.stores.online_places import SqlitePlace

ORDERS: Final = (
    "upgrade publish forget resume publish stream",
    "publish upgrade later_publish resume republish upgrade resume",
    "apply upgrade backfill forget resume later resume",
    "upgrade stream upgrade correct_publish republish stream upgrade publish resume",
)


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def shop_of(folder: Path, patch: pytest.MonkeyPatch) -> OrdersShop:
    return OrdersShop.of_now(folder / "shop", patch, ago_us=6 * HOUR)


@pytest.mark.parametrize("order", ORDERS)
def test_commands_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    shop = shop_of(tmp_path, monkeypatch)
    shop.begin(monkeypatch)
    for command in order.split():
        shop.run(command)
    shop.prove()
    shop.end()


def test_a_backfill_leaves_the_rows_of_a_stream_that_goes_on_in_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "redis") as server:
        shop = shop_of(tmp_path, monkeypatch)
        shop.changes = {"online_store": server.place}
        shop.begin(monkeypatch)
        for command in ("upgrade", "publish", "forget"):
            shop.run(command)
        shop.end()


def test_a_stream_whose_rows_were_replaced_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases before left a stream that was upgraded without its rows, once one had published."""
    shop = shop_of(tmp_path, monkeypatch)
    shop.begin(monkeypatch)
    shop.run("upgrade")
    with monkeypatch.context() as patch:
        patch.setattr("tidemill.pipelines.recovery.store_fills._is_of_stream", lambda *_: False)
        shop.run("publish")
    with pytest.raises(LostPublications, match="run `tidemill republish`, then resume"):
        shop.run("resume")
    shop.run("republish")
    shop.end()


@pytest.mark.parametrize("before", ["", "resume upgrade"])
def test_rows_of_an_upgrade_that_another_generation_has_overtaken_are_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Those of views that were kept, too; the stream that had them is gone."""
    shop = shop_of(tmp_path, monkeypatch)
    shop.begin(monkeypatch)
    for command in ("upgrade", *before.split(), "correct", "forget"):
        shop.run(command)  # the upgraded stream never went on
    found = shop.prove()
    assert found["store_rows"] > 0 < found["store_values"]
    change_row(shop, "by_shop")
    found = verify(shop.config(), QuietProgress(), sample=5)
    assert {one["view"] for one in found["first_mismatches"]} == {"by_shop"}
    shop.run("publish")
    shop.end()


def change_row(shop: OrdersShop, view: str) -> None:
    """Change rows of a view that readers see."""
    config = shop.config()
    database = open_database(config.online_store)
    space = KeySpace.of(config.project.name, config.project.view(view))
    (fill,) = (one for one in database.fills([space]) if one.is_current)
    database.close()
    place = config.online_store
    assert isinstance(place, SqlitePlace)
    with closing(sqlite3.connect(place.path)) as connection, connection:
        changed = connection.execute(f'UPDATE "{rows_table(fill.id)}" SET revision = revision + 1')
        assert changed.rowcount > 0


def test_what_readers_see_stays_proven_however_often_history_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = shop_of(tmp_path, monkeypatch)
    shop.begin(monkeypatch)
    for command in ("correct_publish", "later", "later"):  # its build is not one of the last two
        shop.run(command)
    assert shop.prove()["store_rows"] > 0
    published = shop.current.folder
    for command in ("correct", "correct"):  # nor is its generation
        shop.run(command)
    assert shop.prove()["store_rows"] > 0
    assert published.exists()
    for command in ("publish", "correct"):
        shop.run(command)
    assert not published.exists()


def test_a_walk_has_every_pair_once() -> None:
    walk = covering_walk(COMMANDS)
    pairs = list(itertools.pairwise(walk))
    assert len(pairs) == len({*pairs}) == len(COMMANDS) ** 2


def test_a_random_walk_has_as_many_triples_as_asked_for() -> None:
    for count in (1, 50, 1_000):
        walk = walk_of_triples("abc", count, random.Random(count))
        assert len({*zip(walk, walk[1:], walk[2:], strict=False)}) == min(count, 27)
    walks = [walk_of_triples(COMMANDS, 40, random.Random(seed)) for seed in (1, 1, 2)]
    assert walks[0] == walks[1] != walks[2]


def test_commands_follow_each_other_where_files_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = ReplayedOrdersShop.of_now(tmp_path / "shop", monkeypatch, ago_us=6 * HOUR)
    shop.begin(monkeypatch)
    for command in ("upgrade", "later", "resume", "forget"):
        shop.run(command)
    shop.end()
