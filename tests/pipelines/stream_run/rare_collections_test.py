"""While a stream runs, Python searches less often for garbage; afterwards as before."""

from __future__ import annotations

import gc

from tidemill.pipelines.stream_run.rare_collections import YOUNG, rare_collections


def test_the_settings_of_before_come_back_after_the_last_block() -> None:
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold()[0] == YOUNG
        assert gc.get_freeze_count() > 0
        with rare_collections():
            assert gc.get_threshold()[0] == YOUNG
        assert gc.get_threshold()[0] == YOUNG
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_garbage_of_the_block_is_still_found() -> None:
    class Ring:
        """Refers to itself."""

    with rare_collections():
        ring = Ring()
        ring.itself = ring  # type: ignore[attr-defined]
        del ring
        assert gc.collect() > 0
