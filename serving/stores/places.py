"""Where all stores of a project are, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.serving.stores.offline_places import OfflinePlace, ParquetPlace
from tidemill.serving.stores.online_places import OnlinePlace, default_place
from tidemill.serving.stores.registry_places import RegistryPlace, default_registry

OFFLINE: Final = "offline"
"""Directory of the offline logs below the root; each definition of a view has its own below it."""


@dataclass(frozen=True)
class StorePlaces:
    """Where the stores of a project are. All programs of a project must agree on it.

    Attributes:
        root: Absolute directory that the offline log is written below; relative paths start here.
        online: Where the newest features are read.
        registry: Where the definitions are registered.
        offline: Where features of the past are read.
    """

    root: Path
    online: OnlinePlace
    registry: RegistryPlace
    offline: OfflinePlace

    @staticmethod
    def below(
        root: Path | str,
        *,
        online: OnlinePlace | None = None,
        registry: RegistryPlace | None = None,
        offline: OfflinePlace | None = None,
    ) -> StorePlaces:
        """Return places below a root.

        Args:
            root: The root; a relative path starts in the working directory.
            online: Where the online store is; None is an SQLite file below the root.
            registry: Where the registry is; None is a file below the root.
            offline: Where features of the past are read; None is the log below the root.
        """
        root = Path(root).absolute()
        return StorePlaces(
            root=root,
            online=online or default_place(root),
            registry=registry or default_registry(root),
            offline=offline or ParquetPlace(),
        )

    @property
    def source(self) -> str | BigQueryDataset:
        """The batch source that Feast views name (`features.feast_objects.feast_objects`)."""
        if isinstance(self.offline, BigQueryDataset):
            return self.offline
        return OFFLINE  # below the Feast repository, which is the root
