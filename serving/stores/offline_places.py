"""Where features of the past are read: the configured place, and Feast's section of it.

For every place, the change-point log is written as Parquet below the root (`serving.offline.log`).
Loading it into BigQuery is left to the user.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.errors import ConfigurationError
from tidemill.serving.files.relative_path import relative_path
from tidemill.serving.stores.class_paths import OFFLINE_STORE

_MEMORY: Final = re.compile(r"\d+(\.\d+)? ?([KMGT]i?B)", re.IGNORECASE)


@dataclass(frozen=True)
class ParquetPlace:
    """The log itself, read by `serving.feast_plugins.offline_store`.

    Attributes:
        memory_limit: Memory limit of duckdb, such as ``2GB``; None is four fifths of the machine's.
        threads: Threads of duckdb; None is one per core.
        spill: Absolute directory for what exceeds the limit; None is the machine's temporary one.
    """

    memory_limit: str | None = None
    threads: int | None = None
    spill: Path | None = None

    def __post_init__(self) -> None:
        if self.memory_limit is not None and not _MEMORY.fullmatch(self.memory_limit):
            raise ConfigurationError(
                f"offline_store: found the memory limit {self.memory_limit!r}, expected a number "
                "and a unit such as 2GB (KB, MB, GB, TB, KiB, MiB, GiB or TiB)"
            )


OfflinePlace = ParquetPlace | BigQueryDataset
"""Any of the places."""


def offline_section(place: OfflinePlace, repository: Path) -> dict[str, Any]:
    """Return the ``offline_store`` section of the Feast configuration for a place.

    Args:
        place: Where features of the past are read.
        repository: The folder of the ``feature_store.yaml``: paths of files start there.
    """
    if isinstance(place, BigQueryDataset):
        return {"type": "bigquery", "project_id": place.project, "dataset": place.dataset}
    spill = None if place.spill is None else relative_path(place.spill, repository)
    options = {"memory_limit": place.memory_limit, "threads": place.threads, "spill": spill}
    return {"type": OFFLINE_STORE, **{k: v for k, v in options.items() if v is not None}}


def check_installed(place: OfflinePlace) -> None:
    """Check that the libraries that read a place are installed.

    Raises:
        ConfigurationError: The place is BigQuery, and Google's clients are missing.
    """
    if not isinstance(place, BigQueryDataset):
        return
    from feast.errors import FeastExtrasDependencyImportError

    try:
        import feast.infra.offline_stores.bigquery  # noqa: F401
    except FeastExtrasDependencyImportError as error:
        raise ConfigurationError(
            f"offline_store: BigQuery is read with Google's clients ({error.__context__}); they "
            "come with the extra gcp: pip install 'tidemill[gcp]'"
        ) from error
