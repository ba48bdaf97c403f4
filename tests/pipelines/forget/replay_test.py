"""Forgetting an entity of a replayed stream that has ended, with views of several entities."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.proof_run import (
    Server,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.searched import where_found
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify


DRIVER = "Anna Müller 3"
"""A key that nothing else contains, and that JSON may write in two ways."""


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """A stream of rides that has ended."""
    folder = tmp_path_factory.mktemp("rides")
    write_sources(folder)
    for path in folder.glob("*.csv"):
        path.write_text(re.sub(r"\bd3\b", DRIVER, path.read_text()))
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    Server(config).serve()
    return config


@pytest.fixture
def config(served: Configuration, tmp_path: Path) -> Configuration:
    """A copy of it."""
    shutil.copytree(served.root.parent, tmp_path / "rides")
    return configuration(tmp_path / "rides", tmp_path / "rides" / "run")


def test_a_zone(config: Configuration) -> None:
    figures = forget(config, "zone", "2", QuietProgress())
    print(figures)
    found = verify(config, QuietProgress(), sample=20)
    for one in found["first_mismatches"]:
        print(one)
    assert found["mismatches"] == 0


def test_a_driver(config: Configuration) -> None:
    figures = forget(config, "driver", DRIVER, QuietProgress())
    print(figures)
    assert where_found(config.root, DRIVER) == []
    found = verify(config, QuietProgress(), sample=20)
    for one in found["first_mismatches"]:
        print(one)
    print({k: v for k, v in found.items() if "mismatch" in k and k != "first_mismatches"})
    assert found["mismatches"] == 0
