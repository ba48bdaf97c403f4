"""Every command of a root after every other one, each proven: which orders does the suite not try?

A walk of 145 commands has every pair of them once. It is cut into pieces, each on a root of its
own; after each command everything is verified. It takes about a quarter of an hour:

    python -m benchmarks.command_orders [PAIRS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.command_orders import COMMANDS, OrdersShop, covering_walk
from tidemill.features.contract import HOUR


def main(pairs: int = 18) -> int:
    """Run all pieces; return how many failed.

    Args:
        pairs: How many pairs a piece has.
    """
    walk, failed = covering_walk(COMMANDS), 0
    for start in range(0, len(walk) - 1, pairs):
        words = walk[start : start + pairs + 1]
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.fsync", lambda _: None)
            shop = OrdersShop.of_now(Path(folder) / "shop", patch, ago_us=6 * HOUR)
            began = time.perf_counter()
            try:
                shop.begin(patch)
                for word in words:
                    shop.run(word)
                    shop.prove()
                shop.end()
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - the next piece is run
                failed += 1
                print(f"FAILED {' '.join(shop.done)}: {type(error).__name__}: {error}", flush=True)
            else:
                print(f"{time.perf_counter() - began:6.0f} s  {' '.join(words)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
