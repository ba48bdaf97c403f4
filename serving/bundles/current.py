"""The live bundle: the one that a file beside the bundles names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemill.features.errors import BundleError
from tidemill.serving.files.atomic_write import write_text

BUNDLES: Final = "bundles"
"""The directory of bundles below the root."""
CURRENT: Final = "current"
"""The file in it that names the live bundle's version."""


def current_bundle(root: Path) -> Path:
    """Return the folder of the live bundle.

    Raises:
        BundleError: There is none yet.
    """
    pointer = root / BUNDLES / CURRENT
    if not pointer.exists():
        raise BundleError(f"there is no live bundle in {root / BUNDLES}; run `tidemill train`")
    return root / BUNDLES / pointer.read_text().strip()


def make_current(root: Path, version: str) -> None:
    """Make a version the live bundle, in one step; it must be there already."""
    write_text(root / BUNDLES / CURRENT, version + "\n")
