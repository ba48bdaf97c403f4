"""Where stores are: the frozen places of online store, offline store and registry.

A place opens nothing and holds no secret. It names a store and makes Feast's configuration of it.
"""

from __future__ import annotations

from tidemill.serving.stores.feast_config import repo_config, write_feature_store_yaml
from tidemill.serving.stores.offline_places import OfflinePlace, ParquetPlace
from tidemill.serving.stores.online_places import Clock, FeastPlace, OnlinePlace, SqlitePlace
from tidemill.serving.stores.places import OFFLINE, StorePlaces
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls
from tidemill.serving.stores.registry_places import FileRegistry, RegistryPlace, SqlRegistry

__all__ = [
    "OFFLINE",
    "Clock",
    "FeastPlace",
    "FileRegistry",
    "OfflinePlace",
    "OnlinePlace",
    "ParquetPlace",
    "RedisPlace",
    "RedisTls",
    "RegistryPlace",
    "SqlRegistry",
    "SqlitePlace",
    "StorePlaces",
    "repo_config",
    "write_feature_store_yaml",
]
