"""Bundles: everything that a prediction needs beside the features, versioned as one directory.

```
VERSION/
├── manifest.json     what it is, what it was made from; the hash of every other file
├── spec.json         the project's canonical form (`Project.spec`) that it was trained for
├── evaluation.json   its metrics, and those of its baselines
├── statistics.json   statistics of the inputs in the training split
├── transform/        the analysed transform graph (tf.Transform's layout)
└── model/            the SavedModel: cast, transform graph and Keras model in one
```

Its *identity* is the version: a hash of what it computes and of what that was made from (`IDENTITY`
lists the fields). Equal definitions, rows, settings, software and weights give equal versions, in
any process and on any day, although TensorFlow writes other bytes each time.

Its *integrity* is that of the files: a bundle of which a file is missing, added or changed is
refused, and so is one that was trained for other definitions than the project's; the error names
the file, or each view, feature and property that differs. Neither depends on the *lineage*, which
says from which data the bundle was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.definitions import Project
from tidemill.features.errors import BundleError, BundleMismatch, DamagedBundle
from tidemill.features.models.preprocessing import ModelInput
from tidemill.serving.bundles.content_hash import content_hash, file_hashes
from tidemill.serving.bundles.saved_model import TransformGraph
from tidemill.serving.definition_changes import project_changes
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.read_files import read_json, reading

FORMAT: Final = 2
"""Version of the directory's layout and of the manifest."""
MANIFEST: Final = "manifest.json"
IDENTITY: Final = (
    "format", "project", "feature_spec_hash", "transform_hash", "model_hash", "inputs",
    "transformed", "padding", "software", "training",
)  # fmt: skip
"""The fields of the manifest that the version is a hash of."""

_DIGEST: Final = "digest"
_AGAIN: Final = "copy the bundle again or run `tidemill train` again"


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
        """The hash of its identity, 16 hexadecimal digits."""
        return str(self.manifest["version"])

    @property
    def created_at(self) -> str:
        """When it was written; no part of the version."""
        return str(self.manifest["created_at"])

    @property
    def feature_spec_hash(self) -> str:
        """`Project.hash` of the definitions that it was trained for."""
        return str(self.manifest["feature_spec_hash"])

    @property
    def transform_hash(self) -> str:
        """Canonical hash of what the transform graph computes."""
        return str(self.manifest["transform_hash"])

    @property
    def model_hash(self) -> str:
        """Canonical hash of what the SavedModel computes, weights included."""
        return str(self.manifest["model_hash"])

    @property
    def lineage(self) -> Mapping[str, Any]:
        """From which data it was made, as given to `train_bundle`; never a reason to refuse it.

        If several trainings gave this version, it is the lineage of the first.
        """
        lineage: Mapping[str, Any] = self.manifest["lineage"]
        return lineage

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
            BundleError: It is not a bundle, or has another format.
            DamagedBundle: A file is missing, added or changed.
            BundleMismatch: It was trained for other definitions.
        """
        directory = Path(directory)
        path = directory / MANIFEST
        if not path.is_file():
            raise BundleError(
                f"{directory} is no bundle: there is no {MANIFEST}; run `tidemill train`"
            )
        try:
            with reading(path, _AGAIN):
                text = path.read_bytes()
            manifest = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedBundle(f"{path} is not JSON: {error}; {_AGAIN}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else manifest
            raise BundleError(
                f"{path} has format {found!r}; this program reads format {FORMAT}: run "
                "`tidemill train` again, or use the program that wrote it"
            )
        bundle = cls(directory, manifest)
        bundle._check_files()
        if project is not None:
            bundle.check_project(project)
        return bundle

    def _check_files(self) -> None:
        with reading(self.directory / MANIFEST, _AGAIN):
            written: dict[str, str] = dict(self.manifest["files"])
            _ = self.created_at, self.feature_spec_hash, self.transform_hash, self.model_hash
            _ = self.inputs, self.lineage
            version, computed = self.version, bundle_version(self.manifest)
            intact = self.manifest[_DIGEST] == manifest_digest(self.manifest)
        if version != computed or not intact:
            raise DamagedBundle(
                f"bundle {self.directory}: {MANIFEST} was changed after it was written; {_AGAIN}"
            )
        with named_for(self.directory):
            found = file_hashes(self.directory)
        found.pop(MANIFEST, None)
        for what, names in (
            ("lacks", sorted(written.keys() - found.keys())),
            ("has a file too many:", sorted(found.keys() - written.keys())),
            ("has changed:", sorted(n for n in written if found.get(n, written[n]) != written[n])),
        ):
            if names:
                raise DamagedBundle(
                    f"bundle {self.directory} {what} {names[0]!r}"
                    f"{f' and {len(names) - 1} more' if names[1:] else ''}; its files are not "
                    f"those that were written: {_AGAIN}"
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


def bundle_version(manifest: Mapping[str, Any]) -> str:
    """Return the version of a bundle: the hash of the identity in its manifest."""
    return content_hash({name: manifest[name] for name in IDENTITY})


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the hash of a whole manifest, for its field ``digest``."""
    return content_hash({k: v for k, v in manifest.items() if k != _DIGEST})
