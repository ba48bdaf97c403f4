"""Commands of a root in every order, each proven: which orders does the suite not try?

A walk of 145 commands has every pair of them once. It is cut into pieces, each on a root of its
own; after each command everything is verified. It takes about a quarter of an hour:

    python -m benchmarks.command_orders [--pairs PAIRS] [--files]

Random walks have triples, so many that are not in an earlier one; a seed gives the same walks:

    python -m benchmarks.command_orders --triples 200 --seed 1 [--files]

With `--files` the stream replays files; else it reads topics.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.command_orders import (
    COMMANDS,
    OrdersShop,
    ReplayedOrdersShop,
    covering_walk,
    walk_of_triples,
)
from tidemill.features.contract import HOUR


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all pieces; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=18, help="of a piece (default: 18)")
    parser.add_argument("--triples", type=int, help="run random walks with so many triples")
    parser.add_argument("--seed", type=int, default=1, help="of the random walks")
    parser.add_argument("--files", action="store_true", help="replay files, and read no topics")
    asked = parser.parse_args(arguments)
    shop = ReplayedOrdersShop if asked.files else OrdersShop
    walk = covering_walk(COMMANDS)
    if asked.triples is not None:
        walk = walk_of_triples(COMMANDS, asked.triples, random.Random(asked.seed))
    return sum(not _proven(shop, words) for words in _pieces(walk, asked.pairs))


def _pieces(walk: Sequence[str], pairs: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(walk) - 1, pairs):
        yield walk[start : start + pairs + 1]


def _proven(kind: type[OrdersShop], words: Sequence[str]) -> bool:
    """Run commands on a root of their own, and prove all after each; print what came of it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        shop = kind.of_now(Path(folder) / "shop", patch, ago_us=6 * HOUR)
        began = time.perf_counter()
        try:
            shop.begin(patch)
            for word in words:
                shop.run(word)
                shop.prove()
            shop.end()
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - the others are run
            print(f"FAILED {' '.join(shop.done)}: {type(error).__name__}: {error}", flush=True)
            return False
        print(f"{time.perf_counter() - began:6.0f} s  {' '.join(words)}", flush=True)
        return True


if __name__ == "__main__":
    sys.exit(main())
