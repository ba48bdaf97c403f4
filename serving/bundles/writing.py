"""Writing bundles: a directory appears whole or not at all, also if several trainings write."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tidemill.features.definitions import Project
from tidemill.features.errors import BundleError, DamagedFile
from tidemill.serving.bundles.bundle import (
    FORMAT,
    MANIFEST,
    Bundle,
    bundle_version,
    manifest_digest,
)
from tidemill.serving.bundles.content_hash import file_hashes
from tidemill.serving.bundles.saved_model import TransformGraph, model_hash, save_model
from tidemill.serving.files.atomic_directory import publish, scratch_directory
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.models.buckets import MAX_ROWS, MIN_ROWS

_SOFTWARE: Final = ("tensorflow", "tensorflow-transform", "keras")


def write_bundle(
    root: Path,
    *,
    project: Project,
    graph: TransformGraph,
    model: Any,
    created_at: str,
    training: Mapping[str, Any],
    evaluation: Any,
    statistics: Any,
    lineage: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle below ``root``, in a directory named by its version.

    If this version exists and its files are unchanged, it stays as it is, with its lineage and time
    of creation. If its files are damaged, it is replaced.

    Args:
        root: The directory of bundles; created if it does not exist.
        project: The definitions that it was trained for.
        graph: The analysed transform graph.
        model: The trained keras.Model over the graph's outputs.
        created_at: Time of its creation; no part of the version.
        training: Settings and rows of the training (JSON); part of the version.
        evaluation: Its metrics (JSON).
        statistics: Statistics of the inputs (JSON).
        lineage: From which data it was made (JSON); no part of the version.

    Raises:
        DefinitionError: The model does not end in one number per row.
        BundleError: A graph holds something that has no canonical hash.
        FileError: The disk is full, the folder read-only, ...
    """
    with named_for(root), scratch_directory(root) as scratch:
        shutil.copytree(graph.directory, scratch / "transform")
        save_model(graph, model, scratch / "model")
        described = {"spec": project.spec(), "evaluation": evaluation, "statistics": statistics}
        for name, content in described.items():
            _write_json(scratch / f"{name}.json", content)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "created_at": created_at,
            "project": project.name,
            "feature_spec_hash": project.hash,
            "view_hashes": {view.name: view.hash for view in project.views},
            "transform_hash": graph.hash,
            "model_hash": model_hash(scratch / "model"),
            "inputs": [{"name": i.name, "kind": i.kind, "dtype": i.dtype} for i in graph.inputs],
            "transformed": graph.outputs(),
            "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
            "padding": {"least_rows": MIN_ROWS, "most_rows": MAX_ROWS},
            "training": dict(training),
            "lineage": dict(lineage or {}),
            "files": file_hashes(scratch),
        }
        manifest["version"] = bundle_version(manifest)
        manifest["digest"] = manifest_digest(manifest)
        _write_json(scratch / MANIFEST, manifest)
        place = root / manifest["version"]
        publish(scratch, place, _is_whole)
    return Bundle.load(place, project)


def _is_whole(place: Path) -> bool:
    try:
        return Bundle.load(place).version == place.name
    except (BundleError, DamagedFile):
        return False


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
