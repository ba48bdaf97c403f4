"""Commands on one root, one after the other: whatever came before, each does what it is to do.

`benchmarks.command_orders` runs every command after every other one.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

import pytest

from tests.support.command_orders import COMMANDS, OrdersShop, covering_walk
from tests.support.redis_server import running
from tidemill.features.contract import HOUR
from tidemill.features.errors import LostPublications
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify

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


def test_rows_of_an_upgrade_that_another_generation_has_overtaken_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = shop_of(tmp_path, monkeypatch)
    shop.begin(monkeypatch)
    for command in ("upgrade", "correct", "forget"):  # the upgraded stream never went on
        shop.run(command)
    found = verify(shop.config(), QuietProgress(), sample=5)
    causes = {one["cause"] for one in found["first_mismatches"]}
    assert len(causes) == 1
    assert "run `tidemill backfill --publish`" in causes.pop()
    shop.run("publish")
    shop.end()


def test_a_walk_has_every_pair_once() -> None:
    walk = covering_walk(COMMANDS)
    pairs = list(itertools.pairwise(walk))
    assert len(pairs) == len({*pairs}) == len(COMMANDS) ** 2
