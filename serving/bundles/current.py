"""The live bundle: a file beside the bundles names its version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tidemill.features.errors import BundleError
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

BUNDLES: Final = "bundles"
"""Directory of bundles below the root."""
CURRENT: Final = "current"
"""File in it that names the live bundle's version."""

_VERSION: Final = re.compile("[0-9a-f]{16}")


def current_bundle(root: Path) -> Path:
    """Return the directory of the live bundle.

    Raises:
        BundleError: There is none yet.
        DamagedFile: The file does not hold a bundle's version.
    """
    pointer = root / BUNDLES / CURRENT
    if not pointer.exists():
        raise BundleError(f"there is no live bundle in {root / BUNDLES}; run `tidemill train`")
    with reading(pointer, "run `tidemill train` again"):
        version = pointer.read_bytes().decode("ascii").strip()
        if not _VERSION.fullmatch(version):
            raise ValueError(f"found {version[:40]!r}, expected the 16 hex digits of a bundle")
    return root / BUNDLES / version


def make_current(root: Path, version: str) -> None:
    """Make an existing version the live bundle, atomically; it stays so after a power cut."""
    with atomic_write(root / BUNDLES / CURRENT, durable=True) as unfinished:
        unfinished.write_text(version + "\n")
