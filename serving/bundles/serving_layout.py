"""The live model where TensorFlow Serving and KServe look for one: ``serving/INTEGER``.

They serve the greatest number below a folder, each a SavedModel (TensorFlow Serving's
``model_base_path``). The newest bundle that was promoted has the greatest number; the one before
stays beside it, until the next.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.files.atomic_directory import publish, retire, scratch_directory

SERVING_FOLDER: Final = "serving"
"""The folder below the root."""
_KEPT: Final = 2


def served(root: Path) -> dict[int, Path]:
    """Return the models that are served, by number."""
    folder = root / SERVING_FOLDER
    found = [path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()]
    return {int(path.name): path for path in sorted(found, key=lambda path: int(path.name))}


def serve(root: Path, bundle: Bundle) -> Path:
    """Give a bundle's SavedModel the next number.

    Args:
        root: The root.
        bundle: The bundle.

    Returns:
        Its folder.

    Raises:
        FileError: It cannot be written.
    """
    before = served(root)
    place = root / SERVING_FOLDER / str(max(before, default=0) + 1)
    with scratch_directory(place.parent) as scratch:
        shutil.copytree(bundle.model_directory, scratch, dirs_exist_ok=True)
        publish(scratch, place, lambda _: False)
    for number in sorted(before)[: max(len(before) + 1 - _KEPT, 0)]:
        retire(before[number])
    return place
