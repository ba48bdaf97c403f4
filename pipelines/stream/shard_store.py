"""The port to a store to which operators publish: in their own bundle, whatever process runs it.

The operator of a shard owns its state. So when the store has lost writes of the shard, the operator
publishes all of it again at once: nobody else has to be told, on no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tidemill.pipelines.stream.wire_format import Published

WholeShard = Callable[[str, int], Published]
"""Returns every entity of a view's shard as of the last release of its operator."""


class ShardStore(Protocol):
    """An open store; one for each thread."""

    def write(self, releases: Sequence[Published], whole: WholeShard) -> None:
        """Write the publications of a bundle's releases, which are in order for each shard.

        Args:
            releases: The publications; a repeat changes nothing.
            whole: Called for each shard of which the store says that it has lost writes.

        Raises:
            StoreError: The store refuses them, or was away for too long.
        """

    def close(self) -> None:
        """Disconnect."""


class ShardStorePlace(Protocol):
    """Where a store is; it travels to the workers with the pipeline."""

    def open(self) -> ShardStore:
        """Open the store."""
