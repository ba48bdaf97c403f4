"""Removing bundles that nothing needs any more: each training adds one.

With ``training.keep_bundles`` the newest bundles stay, so many, and also

* the live one, whenever it was made;
* each that a prediction of a stream below the root names, or that the stream has decided for
  (`StreamRun.models`): without it `verify` could not compute a prediction's score again, nor the
  stream answer who has waited since then. Streams are removed by backfills
  (`pipelines.history.builds`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from tidemill.features.errors import DamagedFile
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run import paths
from tidemill.serving.bundles.bundle import MANIFEST
from tidemill.serving.bundles.current import BUNDLES, current_bundle
from tidemill.serving.files.atomic_directory import retire
from tidemill.serving.files.read_files import read_json
from tidemill.serving.generations.current import GENERATIONS

_VERSION: Final = "bundle_version"


def remove_old_bundles(root: Path, keep: int) -> list[str]:
    """Remove the oldest bundles of a root.

    Args:
        root: The root; it has a live bundle.
        keep: How many of the newest stay.

    Returns:
        The versions that were removed.

    Raises:
        BundleError: There is no live bundle.
        OutputConflict, DamagedFile, DamagedState: Predictions do not hold what was written.
        FileError: A bundle cannot be removed.
    """
    live = current_bundle(root)
    made = {}
    for manifest in (root / BUNDLES).glob(f"[0-9a-f]*/{MANIFEST}"):
        try:
            made[manifest.parent] = read_json(
                manifest, lambda found: str(found["created_at"]), "run `tidemill train` again"
            )
        except DamagedFile:
            continue  # its age is not known: whoever uses it gets the error
    others = sorted((at, folder.name) for folder, at in made.items() if folder != live)
    old = [name for _, name in others[: max(len(others) - (keep - 1), 0)]]
    if not old:
        return []
    used = _used(root)
    removed = [name for name in old if name not in used]
    for name in removed:
        retire(root / BUNDLES / name)
    return removed


def _used(root: Path) -> set[str]:
    """Return the versions that predictions name, and that streams have decided for."""
    found: set[str] = set()
    for record in (root / GENERATIONS).glob(f"*/stream-??????/{paths.STREAM_RUN}"):
        if (run := StreamRun.read(record.parent)) is not None:
            found |= {made["bundle"] for made in run.models or ()} - {None}
    for folder in (root / GENERATIONS).glob(f"*/stream-??????/{paths.PREDICTIONS}"):
        for _, table in OutputFolder(folder).tables([_VERSION]):
            found |= {*pc.unique(table.column(_VERSION)).to_pylist()} - {None}
    return found
