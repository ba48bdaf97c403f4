"""The ``offline_store`` section of the YAML file: where Feast reads past features from.

```yaml
offline_store: {type: parquet}   # the default: the change-point log below the root
offline_store: {type: parquet, memory_limit: 2GB, threads: 4, spill: /scratch}
offline_store: {type: bigquery, project: some-project, dataset: features}
```

Tidemill always writes the log below the root; BigQuery is loaded from it (docs/offline-store.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.strict_yaml import Section, Value, or_null
from tidemill.serving.stores.offline_places import OfflinePlace, ParquetPlace

OFFLINE_STORES: Final = ("parquet", "bigquery")

PARQUET_KEYS: Final = ("type", "memory_limit", "threads", "spill")
BIGQUERY_KEYS: Final = ("type", "project", "dataset")


def offline_place(top: Section, root: Path) -> OfflinePlace:
    """Read the section.

    Raises:
        ConfigurationError: The section is not that of an offline store.
    """
    if "offline_store" not in top.values:
        return ParquetPlace()
    value = top.values["offline_store"]
    kind = value.section().optional("type", lambda name: name.one_of(OFFLINE_STORES), "parquet")
    try:
        return _bigquery(value) if kind == "bigquery" else _parquet(value, root)
    except ConfigurationError as error:
        if str(error).startswith(f"{value.file}:"):
            raise
        raise value.wrong(str(error).removeprefix("offline_store: ")) from error


def _parquet(value: Value, root: Path) -> ParquetPlace:
    readers = {
        "memory_limit": or_null(Value.text),
        "threads": or_null(Value.count),
        "spill": or_null(lambda path: root / path.text()),
    }
    return ParquetPlace(**value.section(PARQUET_KEYS).read(readers))


def _bigquery(value: Value) -> BigQueryDataset:
    section = value.section(BIGQUERY_KEYS)
    return BigQueryDataset(section.required("project").text(), section.required("dataset").text())
