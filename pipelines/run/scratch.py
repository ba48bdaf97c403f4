"""Folders below a root for what is needed only for a moment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidemill.pipelines.run import paths


@contextmanager
def scratch_folder(root: Path, what: str) -> Iterator[Path]:
    """Yield a new folder below a root; remove it at the end of the block.

    Args:
        root: The run's folder.
        what: What it is for: its name begins with this.
    """
    folder = root / paths.SCRATCH
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{what}-") as made:
        yield Path(made)
