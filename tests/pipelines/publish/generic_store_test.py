"""A run whose online store is one of Feast's own, through the generic write path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.proof_run import (
    PROJECT,
    configuration,
    score_without_models,
    write_sources,
)
from tidemill.features.errors import StoreError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.compare_store import read_through_feast
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.online.feast_database import LOST_GUARANTEES
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.online_places import FeastPlace

KEYS = {"by_driver": pa.array([f"d{n}" for n in range(6)]), "by_zone": pa.array(range(4))}


class Said(QuietProgress):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @property
    def warnings(self) -> int:
        found = [line for line in self.lines if "guarantees fall away" in line]
        assert all(lost in line for lost in LOST_GUARANTEES for line in found)
        return len(found)


def _read(config: Configuration) -> dict[str, Any]:
    store = open_store(PROJECT, config.places, clock="replay")
    return {
        view.name: [
            [repr(value) for value in column.to_pylist()]
            for column in read_through_feast(store, view, KEYS[view.name]).columns
        ]
        for view in PROJECT.views
    }


def test_a_run_on_feasts_own_store_warns_once_and_serves_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_without_models(monkeypatch)
    write_sources(tmp_path)
    ordered = configuration(tmp_path, tmp_path / "ordered")
    generic = configuration(tmp_path, tmp_path / "generic")
    place = FeastPlace({"type": "sqlite", "path": "stock.db"}, generic.root)
    generic = replace(generic, online_store=place)
    for config, warnings in ((ordered, 0), (generic, 1)):
        published, streamed = Said(), Said()
        backfill(config, published, publish=True)
        assert published.warnings == warnings
        stream(config, streamed, engine="fnapi")
        assert streamed.warnings == warnings
    assert (generic.root / "stock.db").exists()
    # With any store, the last publications of a stream are the values as of its end.
    assert _read(generic) == _read(ordered)
    with pytest.raises(StoreError, match="keeps no frontiers"):
        verify(generic, QuietProgress(), sample=1)
