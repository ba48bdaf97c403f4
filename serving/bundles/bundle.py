"""Bundles: everything that a prediction needs beside the features, versioned as one directory.

```
VERSION/
├── manifest.json     versions, hashes, inputs, training; the hash of every other file
├── spec.json         the project's canonical form (`Project.spec`) that it was trained for
├── evaluation.json   its metrics, and those of its baselines
├── statistics.json   statistics of the inputs in the training split
├── transform/        the analysed transform graph (tf.Transform's layout)
└── model/            the SavedModel: cast, transform graph and Keras model in one
```

The directory is written atomically. A bundle whose bytes have changed is refused, and so is one
that was trained for other definitions than the project's; the error names each view, feature and
property that differs.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.definitions import Project
from tidemill.features.errors import BundleError, BundleMismatch
from tidemill.features.models.preprocessing import ModelInput
from tidemill.serving.bundles.saved_model import (
    MAX_ROWS,
    MIN_ROWS,
    TransformGraph,
    content_hash,
    file_hashes,
    load_tensorflow,
    save_model,
)
from tidemill.serving.definition_changes import project_changes
from tidemill.serving.files.read_files import read_json, reading

FORMAT: Final = 1
"""Version of the directory's layout and of the manifest."""
MANIFEST: Final = "manifest.json"

# No part of the content that the version is a hash of.
_NOT_CONTENT: Final = ("version", "created_at")
_AGAIN: Final = "copy the bundle again or run `tidemill train` again"
_SOFTWARE: Final = ("tensorflow", "tensorflow-transform", "keras")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its files checked.

    Attributes:
        directory: Its directory.
        manifest: The parsed ``manifest.json``.
    """

    directory: Path
    manifest: Mapping[str, Any]

    @property
    def version(self) -> str:
        """The content hash, 16 hexadecimal digits."""
        return str(self.manifest["version"])

    @property
    def created_at(self) -> str:
        """Time of its creation, as given to `write_bundle`."""
        return str(self.manifest["created_at"])

    @property
    def feature_spec_hash(self) -> str:
        """`Project.hash` of the definitions that it was trained for."""
        return str(self.manifest["feature_spec_hash"])

    @property
    def transform_hash(self) -> str:
        """The transform graph's hash."""
        return str(self.manifest["transform_hash"])

    @property
    def inputs(self) -> tuple[ModelInput, ...]:
        """The model inputs, in order."""
        return tuple(ModelInput(i["name"], i["dtype"]) for i in self.manifest["inputs"])

    @property
    def model_directory(self) -> Path:
        """The SavedModel."""
        return self.directory / "model"

    @property
    def transform_graph(self) -> TransformGraph:
        """The transform graph alone, for use in batch."""
        return TransformGraph.read(self.directory / "transform")

    @property
    def evaluation(self) -> Any:
        """The parsed ``evaluation.json``."""
        return self._read("evaluation.json")

    @property
    def statistics(self) -> Any:
        """The parsed ``statistics.json``."""
        return self._read("statistics.json")

    def _read(self, name: str) -> Any:
        return read_json(self.directory / name, lambda content: content, _AGAIN)

    @classmethod
    def load(cls, directory: Path | str, project: Project | None = None) -> Bundle:
        """Open a bundle and check it.

        Args:
            directory: Its directory.
            project: The definitions that it is used with; None checks the files alone.

        Raises:
            BundleError: It is not a bundle, has another format, or its files have changed.
            BundleMismatch: It was trained for other definitions.
        """
        directory = Path(directory)
        path = directory / MANIFEST
        if not path.is_file():
            raise BundleError(f"{directory} is no bundle: there is no {MANIFEST}; train one first")
        try:
            with reading(path, _AGAIN):
                text = path.read_bytes()
            manifest = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path} is not JSON: {error}; {_AGAIN}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else manifest
            raise BundleError(
                f"{path} has format {found!r}; this program reads format {FORMAT}: train again, "
                "or use the program that wrote it"
            )
        bundle = cls(directory, manifest)
        bundle._check_files()
        if project is not None:
            bundle.check_project(project)
        return bundle

    def _check_files(self) -> None:
        with reading(self.directory / MANIFEST, _AGAIN):
            written: dict[str, str] = dict(self.manifest["files"])
            _ = self.version, self.created_at, self.feature_spec_hash, self.transform_hash
            _ = self.inputs
        found = file_hashes(self.directory)
        found.pop(MANIFEST, None)
        for what, names in (
            ("lacks", sorted(written.keys() - found.keys())),
            ("has a file too many:", sorted(found.keys() - written.keys())),
            ("has changed:", sorted(n for n in written if found.get(n, written[n]) != written[n])),
        ):
            if names:
                raise BundleError(
                    f"bundle {self.directory} {what} {names[0]!r}"
                    f"{f' and {len(names) - 1} more' if names[1:] else ''}; its files are not "
                    "those that were written: copy it again or train again"
                )
        if (computed := _version(self.manifest)) != self.version:
            raise BundleError(
                f"bundle {self.directory}: {MANIFEST} was changed after it was written: its "
                f"content has version {computed}, it says {self.version}"
            )

    def check_project(self, project: Project) -> None:
        """Check that the bundle was trained for a project's present definitions.

        Raises:
            BundleMismatch: It was not; the message names every difference.
        """
        if self.feature_spec_hash == project.hash:
            return
        differences = list(project_changes(self._read("spec.json"), project))
        shown = "".join(f"\n  - {line}" for line in differences[:20])
        if len(differences) > 20:
            shown += f"\n  - and {len(differences) - 20} more"
        raise BundleMismatch(
            f"bundle {self.version} ({self.directory}) was trained for other definitions "
            f"(feature-spec hash {self.feature_spec_hash}) than those at hand ({project.hash}); "
            f"trained -> at hand:{shown}\n"
            "train again, or go back to the definitions it was trained for"
        )


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
) -> Bundle:
    """Write a bundle below ``root``, in a directory named by its version.

    It is written to a temporary directory and renamed. An existing bundle of this content stays.

    Args:
        root: The directory of bundles; created if it does not exist.
        project: The definitions that it was trained for.
        graph: The analysed transform graph.
        model: The trained keras.Model over the graph's outputs.
        created_at: Time of its creation; no part of the version.
        training: Settings of the training (JSON).
        evaluation: Its metrics (JSON).
        statistics: Statistics of the inputs (JSON).

    Raises:
        DefinitionError: The model does not end in one number per row.
    """
    root.mkdir(parents=True, exist_ok=True)
    load_tensorflow()
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
    try:
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
            "transform_hash": graph.hash,
            "inputs": [{"name": i.name, "kind": i.kind, "dtype": i.dtype} for i in graph.inputs],
            "transformed": graph.outputs(),
            "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
            "padding": {"least_rows": MIN_ROWS, "most_rows": MAX_ROWS},
            "training": dict(training),
            "files": file_hashes(scratch),
        }
        manifest["version"] = _version(manifest)
        _write_json(scratch / MANIFEST, manifest)
        scratch.chmod(0o755)
        place = root / manifest["version"]
        if not place.exists():
            scratch.rename(place)
    finally:
        if scratch.exists():
            shutil.rmtree(scratch)
    return Bundle.load(place, project)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _version(manifest: Mapping[str, Any]) -> str:
    return content_hash({k: v for k, v in manifest.items() if k not in _NOT_CONTENT})
