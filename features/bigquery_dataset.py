"""Names in BigQuery of views' change-point logs and of the SQL views that Feast reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tidemill.features.definitions import FeatureView
from tidemill.features.errors import ConfigurationError

# Feast writes these names into SQL, between backticks.
_PROJECT: Final = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
_DATASET: Final = re.compile(r"[A-Za-z0-9_]{1,1024}")


@dataclass(frozen=True)
class BigQueryDataset:
    """A BigQuery dataset that holds change-point logs.

    Attributes:
        project: The Google Cloud project.
        dataset: The dataset.
    """

    project: str
    dataset: str

    def __post_init__(self) -> None:
        for what, name, form in (
            ("project", self.project, _PROJECT),
            ("dataset", self.dataset, _DATASET),
        ):
            if not form.fullmatch(name):
                raise ConfigurationError(
                    f"BigQuery {what} {name!r}: expected a name of the form {form.pattern}"
                )


def log_name(place: BigQueryDataset, view: FeatureView) -> str:
    """Return the full name of a view's change-point log."""
    return f"{place.project}.{place.dataset}.{view.name}__{view.hash}__log"


def newest_name(place: BigQueryDataset, view: FeatureView) -> str:
    """Return the full name of the SQL view that Feast reads."""
    return f"{place.project}.{place.dataset}.{view.name}__{view.hash}"
