"""A project in two versions, its registries, and what a stock client reads of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import feast
import pyarrow as pa
import pytest
from google.protobuf.json_format import MessageToDict

from tests.support import parcels
from tests.support.parcels import BY_COURIER
from tests.support.postgresql_server import PostgresqlServer
from tidemill import FeatureView, Project, count
from tidemill.serving.online.backends import open_database
from tidemill.serving.publications import schema
from tidemill.serving.registry.registration import apply_project
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.online_places import OnlinePlace, default_place
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import FileRegistry, RegistryPlace, SqlRegistry


@pytest.fixture(params=["file", "postgresql"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RegistryPlace]:
    """Registries in a file and in SQL, which are written by different code of Feast's."""
    yield from _opened(request, tmp_path, monkeypatch)


@pytest.fixture(params=["file", "sqlite", "postgresql"])
def any_place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RegistryPlace]:
    """And in SQLite: locks and transactions are those of the database."""
    yield from _opened(request, tmp_path, monkeypatch)


def _opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RegistryPlace]:
    if request.param == "file":
        yield FileRegistry(tmp_path / "registry.db")
    elif request.param == "sqlite":
        yield SqlRegistry(url=f"sqlite:///{tmp_path / 'registry-sql.db'}")
    else:
        server: PostgresqlServer = request.getfixturevalue("postgresql")
        with server.database() as url:
            monkeypatch.setenv("TIDEMILL_TEST_REGISTRY", url)
            yield SqlRegistry(url_env="TIDEMILL_TEST_REGISTRY")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def depot(**features: Any) -> FeatureView:
    """The depot view with these features; by default the same feature over two days."""
    return FeatureView(
        "by_depot",
        parcels.DEPOT,
        parcels.SCANS,
        hop="1h",
        features=features or {"scans_1d": count(over="2d")},
    )


WIDER = depot()
OLD, NEW = parcels.PARCELS, parcels.project(BY_COURIER, WIDER)


def apply(
    project: Project,
    root: Path,
    place: RegistryPlace,
    online: OnlinePlace | None = None,
    **options: Any,
) -> Any:
    places = StorePlaces.below(root, online=online, registry=place)
    return apply_project(project, places, **options)


def promote(project: Project, root: Path, place: RegistryPlace) -> None:
    apply(project, root, place, promote=True, unfilled_too=True)


# Feast 0.67 caches the content of an SQL registry for the process, under the memory address of the
# loaded registry. A freed address may be used again, so keep every client.
_CLIENTS: list[feast.FeatureStore] = []


def client(root: Path, place: RegistryPlace, project: Project = OLD) -> feast.FeatureStore:
    """What a stock client has: Feast's SDK and a configuration, no definitions."""
    config = repo_config(project.name, StorePlaces.below(root, registry=place), clock="replay")
    return keep_client(feast.FeatureStore(config=config))


def keep_client(store: feast.FeatureStore) -> feast.FeatureStore:
    """Keep a client until the process ends, and return it."""
    _CLIENTS.append(store)
    return store


def publish(
    root: Path, view: FeatureView, *numbers: Any, shards: int = 1, frontier_us: int = 5_000
) -> None:
    """Publish one row of the view for its entity 7, its features these numbers; all shards."""
    columns = [column.name for column in view.columns]
    row = {"entity_key": b"7", "event_timestamp": 1_000, "valid_until": 10**15, "revision": 1}
    row |= dict(zip(columns, numbers, strict=True))
    for shard in range(shards):
        rows = pa.RecordBatch.from_pylist([row] if shard == 0 else [], schema=schema(view))
        database = open_database(default_place(root))
        parcels.publish(database, view, rows, shard=shard, shards=shards, frontier_us=frontier_us)


def publish_courier(root: Path) -> None:
    publish(root, BY_COURIER, *([None] * len(BY_COURIER.columns)))


def read(store: feast.FeatureStore, *refs: str, keys: dict[str, Any] | None = None) -> list[Any]:
    answer = store.get_online_features(list(refs), [keys or {"depot": 7}], full_feature_names=True)
    found = answer.to_dict()
    return [found[ref.replace(":", "__")][0] for ref in refs]


def read_service(store: feast.FeatureStore, name: str, keys: dict[str, Any]) -> dict[str, Any]:
    service = store.get_feature_service(name)
    found = store.get_online_features(service, [keys], full_feature_names=True).to_dict()
    return {key: values[0] for key, values in found.items() if key not in keys}


def registered_names(store: feast.FeatureStore) -> set[str]:
    return {view.name for view in store.list_feature_views()}


def contents(store: feast.FeatureStore) -> Any:
    """Everything in the registry but times and what Feast counts for itself."""

    def timeless(node: Any) -> Any:
        if isinstance(node, dict):
            touched = ("meta", "versionId", "lastUpdated", "dataSourceClassType", "infra")
            return {
                k: timeless(v)
                for k, v in node.items()
                if k not in touched and k != "featureViewVersionHistory"
            }
        return [timeless(v) for v in node] if isinstance(node, list) else node

    found = timeless(MessageToDict(store.registry.proto()))
    for key in ("entities", "featureViews", "featureServices", "dataSources"):
        found.get(key, []).sort(key=repr)
    found.pop("registrySchemaVersion", None)
    found.pop("projects", None)
    found.pop("projectMetadata", None)
    return found
