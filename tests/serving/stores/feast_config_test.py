"""The ``feature_store.yaml`` names nothing by an absolute path: the root can be moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import feast
import pyarrow as pa
import pytest
import yaml

from tests.support import parcels
from tests.support.parcels import BY_DEPOT, PARCELS, depot_rows
from tests.support.scan_history import write_scan_history
from tidemill.features.contract import DAY, HOUR
from tidemill.features.errors import StoreError
from tidemill.serving.online.backends import open_database
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.feast_config import FEATURE_STORE_YAML, write_feature_store_yaml
from tidemill.serving.stores.offline_places import ParquetPlace
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls


def _filled(root: Path) -> None:
    """A root with a registry, an online row of depot 7 and the offline history of a scan."""
    places = StorePlaces.below(root)
    open_store(PARCELS, places, clock="replay")
    write_feature_store_yaml(PARCELS.name, places, clock="replay")
    database = open_database(places.online)
    parcels.publish(database, BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)
    database.close()
    write_scan_history(root, at_us=9 * HOUR, until_us=DAY)


def _values(repository: Path) -> list[Any]:
    store = feast.FeatureStore(repo_path=str(repository))
    online = store.get_online_features(["by_depot:scans_1d"], [{"depot": 7}]).to_dict()
    moment = pa.array([10 * HOUR], pa.timestamp("us", tz="UTC"))
    rows = pa.table({"depot": pa.array([7]), "event_timestamp": moment})
    history = store.get_historical_features(rows, ["by_depot:scans_1d"]).to_arrow()
    return [online["scans_1d"], history["scans_1d"].to_pylist()]


def test_moved_root_is_read_where_it_is(tmp_path: Path) -> None:
    _filled(tmp_path / "made")
    moved = tmp_path / "else" / "where"
    moved.parent.mkdir()
    (tmp_path / "made").rename(moved)
    assert _values(moved) == [[5], [1]]


def test_copy_in_another_folder_names_the_root(tmp_path: Path) -> None:
    _filled(tmp_path / "run")
    sections = yaml.safe_load((tmp_path / "run" / FEATURE_STORE_YAML).read_text())
    sections["online_store"]["path"] = "../run/online.db"
    sections["registry"]["path"] = "../run/registry.db"
    copy = tmp_path / "copy" / FEATURE_STORE_YAML
    copy.parent.mkdir()
    copy.write_text(yaml.safe_dump(sections))
    with pytest.raises(StoreError, match=r"no offline log at .*copy.*\{root: PATH\}"):
        _values(copy.parent)
    sections["offline_store"]["root"] = "../run"
    copy.write_text(yaml.safe_dump(sections))
    assert _values(copy.parent) == [[5], [1]]


def test_no_path_is_absolute(tmp_path: Path) -> None:
    root, secrets = tmp_path / "run", tmp_path / "secrets"
    tls = RedisTls(secrets / "ca.crt", secrets / "own.crt", secrets / "own.key")
    redis = RedisPlace(password_file=secrets / "password", tls=tls)
    spill = ParquetPlace(spill=tmp_path / "spill")
    for places in (StorePlaces.below(root), StorePlaces.below(root, online=redis, offline=spill)):
        text = write_feature_store_yaml(PARCELS.name, places, clock="wall").read_text()
        assert str(tmp_path) not in text
    loaded = feast.repo_config.load_repo_config(root, root / FEATURE_STORE_YAML)
    place = loaded.online_store.place(root)
    assert place.password_file.resolve() == secrets / "password"
    assert place.tls.key.resolve() == secrets / "own.key"
    assert loaded.offline_store.engine(root).spill.resolve() == tmp_path / "spill"
