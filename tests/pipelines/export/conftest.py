"""An archive of payments that a test writes, and the configuration of the shop that it is of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.archives import WrittenArchive
from tests.support.exports import shop_with
from tests.support.memory_topics import PAYMENTS
from tidemill.pipelines.config.configuration import Configuration


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def written(tmp_path: Path) -> WrittenArchive:
    return WrittenArchive(tmp_path / "archive", PAYMENTS)


@pytest.fixture
def config(written: WrittenArchive, tmp_path: Path) -> Configuration:
    return shop_with(written.folder, tmp_path / "shop")


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "export"
