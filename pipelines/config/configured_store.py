"""The Feast store of a configuration: every place that it names, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.pipelines.config.configuration import Configuration
from tidemill.serving.registry.registration import open_store

if TYPE_CHECKING:
    import feast


def open_configured(config: Configuration) -> feast.FeatureStore:
    """Register what is missing of a configuration's project, and open its store.

    Its clock is that of the stream. A stage that forgot one of the places would register the
    views elsewhere than the others do.

    Raises:
        StoreError: The registry or the store refuses.
    """
    return open_store(
        config.project,
        config.root,
        clock="replay",
        place=config.online_store,
        registry=config.registry,
        offline=config.offline_store,
    )
