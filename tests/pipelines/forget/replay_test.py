"""Forgetting an entity of a replayed stream that has ended, with views of several entities."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest

from tests.support.folders import build_of
from tests.support.killed_fork import killed_at, steps_of
from tests.support.proof_run import (
    BY_DRIVER,
    BY_ZONE,
    PROJECT,
    FakeScorer,
    Server,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.searched import where_found
from tidemill import FeatureView
from tidemill.features.definitions import TIMESTAMP
from tidemill.features.errors import InputError, Locked, StateMismatch
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.forget import finish, forget
from tidemill.pipelines.forget.record import FORGOTTEN, WORK, check_finished, read_records
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.summary import read_summary, write_summary
from tidemill.pipelines.verify.read_features import read_features
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.bundles.blocks import Blocks, Layout
from tidemill.serving.files.locks import lock
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.reader import STATUS
from tidemill.serving.online.rows import KeySpace

DRIVER: Final = "Anna Müller 3"
"""A key that nothing else contains, and that JSON may write in two ways."""


class Adding(FakeScorer):
    """Scores the sum of all numbers, so that a score says when one of them was another."""

    layout = Layout.of([one for one in model_inputs(PROJECT) if one.dtype != TIMESTAMP])

    def score(
        self, columns: pa.RecordBatch | Blocks, parts: Sequence[int] | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        blocks = columns if isinstance(columns, Blocks) else self.layout.pack(columns)
        numbers = np.where(np.isnan(blocks.float64), 0.5, blocks.float64).sum(axis=1)
        whole = np.where(blocks.null, 0.5, blocks.int64).sum(axis=1)
        return np.nan_to_num(numbers + whole).astype(np.float32)


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch, Adding())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """A stream of rides that has ended."""
    folder = tmp_path_factory.mktemp("rides")
    sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress(), publish=True)
    Server(config, scorer=Adding()).serve()
    return config


@pytest.fixture
def config(served: Configuration, tmp_path: Path) -> Configuration:
    """A copy of it."""
    return copied(served, tmp_path / "rides")


def sources(folder: Path) -> None:
    write_sources(folder)
    for path in folder.glob("*.csv"):
        path.write_text(re.sub(r"\bd3\b", DRIVER, path.read_text()))


def copied(served: Configuration, folder: Path) -> Configuration:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(served.root.parent, folder)
    return configuration(folder, folder / "run")


def forgotten(config: Configuration, entity: str, key: str) -> dict[str, Any]:
    return forget(config, entity, key, QuietProgress())


def proven(config: Configuration) -> dict[str, Any]:
    found = verify(config, QuietProgress(), sample=20)
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def test_what_names_another_entity_too_goes_on_to_be_proven(config: Configuration) -> None:
    before = proven(config)
    figures = forgotten(config, "zone", "2")
    assert figures["removed"]["rows of logs"] > 100
    found = proven(config)
    # No view of drivers reads the zone, so all of their values are proven as before.
    assert found["forgotten_values"] == 0 < found["forgotten_rows"]
    assert found["predictions"] == before["predictions"] - figures["removed"]["predictions"]
    assert statuses(config, BY_ZONE, [1, 2]) == ["PRESENT", "NOT_FOUND"]


def test_nothing_holds_the_key_and_the_rest_is_proven(config: Configuration) -> None:
    left = [
        "scratch/x/part",
        "generations/unfinished/log/rides/00000.arrow",
        "summary.json.1.unfinished",
    ]
    for name in left:
        (config.root / name).parent.mkdir(parents=True, exist_ok=True)
        (config.root / name).write_text(DRIVER)
    write_summary(config.root, "verify", {"first_late": [{"request": "q1", "why": f"of {DRIVER}"}]})
    (config.root / "report.html").write_text(f"<td>{DRIVER}</td>")
    figures = forgotten(config, "driver", DRIVER)
    assert where_found(config.root, DRIVER) == []
    assert read_summary(config.root)["verify"]["first_late"][0]["why"] == "forgotten"
    assert statuses(config, BY_DRIVER, ["d1", DRIVER]) == ["PRESENT", "NOT_FOUND"]
    found = proven(config)
    # Zones count their drivers: those values cannot be recomputed any more.
    assert found["forgotten_values"] > 0
    (record,) = read_records(config.root)
    assert set(record.others) == {"by_zone__drivers_1d"}
    assert record.ended
    assert record.number == figures["record"] == 1
    assert (record.entity, len(record.digest)) == ("driver", 64)
    assert record.removed == figures["removed"]
    assert all(record.removed[place] > 0 for place in ("predictions", "publications", "states"))
    assert any("rides.csv" in one for one in record.remains)
    # Once more finds nothing, and says so with another record.
    again = forgotten(config, "driver", DRIVER)
    assert not any(again["removed"].values())
    assert again["record"] == 2
    assert proven(config)["forgotten_values"] == found["forgotten_values"]


def test_a_stream_in_eager_mode_is_ended(tmp_path: Path) -> None:
    tmp_path.joinpath("rides").mkdir()
    config = configuration(tmp_path / "rides", tmp_path / "rides" / "run", "eager")
    sources(tmp_path / "rides")
    backfill(config, QuietProgress())
    Server(config, scorer=Adding()).serve()
    figures = forgotten(config, "driver", DRIVER)
    assert any("ran in eager mode" in one for one in figures["remains"])
    assert where_found(config.root, DRIVER) == []
    found = proven(config)
    (earlier,) = found["earlier"]
    assert earlier["why"] == "in eager mode, and rows of it were forgotten (record 00001)"


def test_a_changed_value_is_still_found(config: Configuration) -> None:
    forgotten(config, "driver", DRIVER)
    path = next((build_of(config.root) / "log" / "rides").glob("*.arrow"))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"r699")
    data[at : at + 4] = b"r698"
    path.write_bytes(data)
    with pytest.raises(Exception, match="was changed after it was written"):
        verify(config, QuietProgress(), sample=1)


@pytest.mark.parametrize("record", ["build", "stream"])
def test_a_changed_log_is_not_given_a_record_that_says_it_is_right(
    record: str, config: Configuration
) -> None:
    build, stream = build_of(config.root), config.current.stream_folder
    before = {path: path.read_bytes() for path in config.root.rglob("*.arrow")}
    if record == "build":
        manifest = BuildManifest.read(build)
        sources = {name: {**one, "digest": "0" * 64} for name, one in manifest.sources.items()}
        replace(manifest, sources=sources).write(build)
    else:
        run = StreamRun.read(stream)
        assert run is not None
        replace(run, digests=dict.fromkeys(run.digests, "0" * 64)).write(stream)
    with pytest.raises(StateMismatch, match="it was changed, and nothing is forgotten until it is"):
        forgotten(config, "driver", DRIVER)
    assert before == {path: path.read_bytes() for path in config.root.rglob("*.arrow")}
    assert read_records(config.root) == []


def test_wrong_names_and_keys(config: Configuration) -> None:
    with pytest.raises(InputError, match="no entity 'drivers'; the project has driver, zone; "):
        forgotten(config, "drivers", DRIVER)
    for key in ("two", "2.0", "9" * 19):
        with pytest.raises(InputError, match=r"int64 keys: found .* whole number"):
            forgotten(config, "zone", key)
    figures = forgotten(config, "zone", "77")
    assert not any(figures["removed"].values())


def test_nobody_else_writes_meanwhile(config: Configuration) -> None:
    held = config.current.stream_lock
    with lock(held, "run this generation's stream"), pytest.raises(Locked):
        forgotten(config, "driver", DRIVER)
    assert not (config.root / FORGOTTEN).exists()


def test_a_kill_at_any_step_is_finished(
    served: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # nothing here loses its power
    config = copied(served, tmp_path / "rides")
    steps = steps_of(partial(forgotten, config, "driver", DRIVER))
    planned = next(n for n, step in enumerate(steps, 1) if "plan.json" in step)
    chance = random.Random(1)
    early = chance.sample(range(1, planned), 2)
    late = [*chance.sample(range(planned + 2, len(steps)), 3), len(steps)]
    for step in (*early, planned + 2, *late):
        config = copied(served, tmp_path / "rides")
        files = contents(config.root)
        killed_at(step, partial(forgotten, config, "driver", DRIVER))
        if (config.root / FORGOTTEN / WORK / "plan.json").exists():
            with pytest.raises(StateMismatch, match="run `tidemill forget --finish`"):
                check_finished(config.root)
            finish(config, QuietProgress())
        elif step < planned:
            assert contents(config.root) == files
            check_finished(config.root)
            forgotten(config, "driver", DRIVER)
        check_finished(config.root)  # removes what a kill at the very end may have left
        assert where_found(config.root, DRIVER) == [], steps[step - 1]
        assert stored(config) == []
    proven(config)


def statuses(config: Configuration, view: FeatureView, keys: list[Any]) -> list[str]:
    """Return what readers of the online store are told about some keys."""
    texts = [str(key) for key in keys]
    rows = read_features(PROJECT, config.online_store, view.name, texts)
    found: list[str] = rows.column(STATUS).to_pylist()
    return found


def contents(root: Path) -> dict[str, bytes]:
    """Return the bytes of all files but those of work in progress, locks and write-ahead logs."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and FORGOTTEN not in path.parts
        and not path.name.endswith((".lock", "-wal", "-shm"))
    }


def stored(config: Configuration) -> list[bytes]:
    """Return the keys of the online store that are the driver's."""
    database = open_database(config.online_store)
    spaces = [KeySpace.of(PROJECT.name, view) for view in PROJECT.views]
    keys = [
        row.key for fill in database.fills(spaces) for rows in database.scan(fill) for row in rows
    ]
    database.close()
    assert keys
    return [key for key in keys if DRIVER.encode() in key]
