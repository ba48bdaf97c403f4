"""Which bundles go when another one is made."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.stream_outputs import put_outputs
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.configuration import Training
from tidemill.pipelines.training.old_bundles import remove_old_bundles
from tidemill.serving.bundles.current import make_current

NAMES = [f"{number:016x}" for number in (11, 3, 7, 5, 2)]
"""Versions, the oldest first."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for day, name in enumerate(NAMES, 1):
        folder = tmp_path / "bundles" / name
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "saved_model.pb").write_bytes(b"weights")
        manifest = {"created_at": f"2026-01-{day:02d}T00:00:00Z"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    make_current(tmp_path, NAMES[-1])
    return tmp_path


def left(root: Path) -> list[str]:
    found = {path.name for path in (root / "bundles").iterdir() if path.is_dir()}
    assert found <= {*NAMES}
    return [name for name in NAMES if name in found]


def predict(root: Path, versions: list[str | None]) -> None:
    folder = root / "generations" / "g" / "stream-000001" / "predictions"
    rows = pa.RecordBatch.from_pydict({"bundle_version": pa.array(versions, pa.string())})
    put_outputs(folder, 1, {"00001-one": rows})


def test_the_newest_stay(root: Path) -> None:
    assert remove_old_bundles(root, 3) == NAMES[:2]
    assert left(root) == NAMES[2:]
    assert remove_old_bundles(root, 3) == []


def test_the_live_one_stays_whenever_it_was_made(root: Path) -> None:
    make_current(root, NAMES[0])
    remove_old_bundles(root, 2)
    assert left(root) == [NAMES[0], NAMES[-1]]


def test_what_predictions_name_stays(root: Path) -> None:
    predict(root, [NAMES[1], None])
    remove_old_bundles(root, 2)
    assert left(root) == [NAMES[1], *NAMES[-2:]]


def test_one_whose_age_is_not_known_stays(root: Path) -> None:
    (root / "bundles" / NAMES[0] / "manifest.json").write_text("{")
    remove_old_bundles(root, 2)
    assert left(root) == [NAMES[0], *NAMES[-2:]]


def test_fewer_than_two_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="keep_bundles is 1, expected at least 2"):
        Training(keep_bundles=1)
