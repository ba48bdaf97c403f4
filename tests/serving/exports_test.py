"""The public surface of serving: the exports of each package, and the class paths for Feast."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.parcels import PARCELS
from tidemill.features.errors import ConfigurationError
from tidemill.serving.stores import class_paths
from tidemill.serving.stores.feast_config import write_feature_store_yaml
from tidemill.serving.stores.online_places import FeastPlace
from tidemill.serving.stores.places import StorePlaces

EXPORTS = {
    "bundles": "BUNDLES Bundle Scorer Stamps TransformGraph current_bundle make_current "
    "shared_scorer write_bundle",
    "files": "atomic_write segment_of segment_prefix write_text",
    "generations": "CURRENT GENERATIONS Current find_current read_current write_current",
    "models": "BUCKETS SERVING Limits Outcome Rejection SavedModel Signature",
    "offline": "Merge OfflineLog Span log_ddl merge_day newest_ddl offline_table planned_merge "
    "project_ddl",
    "online": "Fill Frontiers Holder KeySpace NewFill OnlineDatabase OnlineReader OnlineReading "
    "Parcel Row RowBatch Snapshot Writer finish_anchored missing_guarantees "
    "online_rows open_database parcels_of",
    "registry": "Preview RegistrationPlan SpacePlan apply_project drop_orphans feast_name "
    "find_orphans open_store plan_project",
    "stores": "OFFLINE Clock FeastPlace FileRegistry OfflinePlace OnlinePlace ParquetPlace "
    "RedisPlace RedisTls RegistryPlace SqlRegistry SqlitePlace StorePlaces repo_config "
    "write_feature_store_yaml",
}

CLASS_PATHS = {
    "tidemill.serving.feast_plugins.online_store.OrderedOnlineStore",
    "tidemill.serving.feast_plugins.online_store.OrderedSqliteOnlineStore",
    "tidemill.serving.feast_plugins.online_store.OrderedRedisOnlineStore",
    "tidemill.serving.feast_plugins.offline_store.ChangePointOfflineStore",
    "tidemill.serving.feast_plugins.registry_file.AtomicFileRegistryStore",
    "tidemill.serving.feast_plugins.materialization.ChangePointComputeEngine",
}


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_offers_these_names(package: str) -> None:
    module = importlib.import_module(f"tidemill.serving.{package}")
    assert module.__all__ == EXPORTS[package].split()
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_is_imported_without_what_is_heavy(package: str) -> None:
    code = (
        f"import sys, tidemill.serving.{package}\n"
        "heavy = set('apache_beam duckdb feast pandas redis sqlalchemy tensorflow'.split())\n"
        "sys.exit(repr(found) if (found := heavy & sys.modules.keys()) else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_handler_is_imported_from_serving_and_beam_only_with_it() -> None:
    code = (
        "import sys, tidemill.serving\n"
        "assert 'apache_beam' not in sys.modules\n"
        "from tidemill.serving import SplitRejected, TensorFlowModelHandler\n"
        "assert 'apache_beam' in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted(CLASS_PATHS))
def test_a_class_path_stays(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_what_is_written_for_feast_is_one_of_the_public_paths(tmp_path: Path) -> None:
    named = {path for name, path in vars(class_paths).items() if name.isupper() and name[0] != "_"}
    assert named < CLASS_PATHS
    text = write_feature_store_yaml(
        PARCELS.name, StorePlaces.below(tmp_path), clock="wall"
    ).read_text()
    assert sum(path in text for path in CLASS_PATHS) == 4


@pytest.mark.parametrize("path", sorted(CLASS_PATHS))
def test_a_former_class_path_is_known(path: str) -> None:
    former = path.replace("tidemill.serving.feast_plugins.", "serving.")
    assert class_paths.renamed_class(former) == path
    assert class_paths.renamed_classes(f"type: {former}\n") == {former: path}
    assert class_paths.renamed_class(path) is None
    assert class_paths.renamed_classes(f"type: {path}\nother: my.{former}\n") == {}


def test_a_former_class_path_in_the_configuration_is_refused_with_the_new_one() -> None:
    former = "serving.online_store.OrderedSqliteOnlineStore"
    with pytest.raises(ConfigurationError, match=f"{former}.*now.*feast_plugins.online_store"):
        FeastPlace({"type": former, "path": "online.db"}, Path("/run"))
