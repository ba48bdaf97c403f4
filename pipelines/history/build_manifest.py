"""The manifest of a build, ``build.json``: what its artefacts were made from.

It is written when all artefacts of the build are complete. `check_build` compares it with the files
at hand, so a damaged, shortened or foreign file is refused by name before it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.ingest.live_rows import LiveRows
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run import paths
from tidemill.serving.files.file_digest import file_sha256
from tidemill.serving.files.records import RecordFormat, read_record, write_record

BUILD_RECORD: Final = "build.json"
_AGAIN: Final = "run `tidemill backfill` again"


@dataclass(frozen=True)
class BuildManifest:
    """What a build was made from.

    Attributes:
        generation: The id of its generation.
        parent: The generation before its own; None for the first.
        because: Where the log of its generation began to differ from the parent's.
        sources: By source: its ``cut`` (the position after the last row of each partition), the
            ``digest`` of the rows below it, the ``files`` that they were read from, and what of it
            is ``live``: read of a topic.
        project: The hash of the project's definitions.
        views: View to the hash of its definition.
        shards: The number of shards of each view.
        as_of_us: The instant that the states are as of.
        training_table: File to the SHA-256 of its bytes.
        handoff: The `pipelines.recovery.handoff.Handoff.id` of the states.
        definitions: The canonical form of the project (`Project.spec`), by which the build is
            proven; None for a build of a version that did not record it.
    """

    generation: str
    parent: str | None
    because: Sequence[str]
    sources: Mapping[str, Mapping[str, Any]]
    project: str
    views: Mapping[str, str]
    shards: int
    as_of_us: int
    training_table: Mapping[str, str]
    handoff: str
    definitions: Mapping[str, Any] | None = None

    def write(self, build: Path) -> None:
        """Write the manifest into the folder of its build."""
        write_record(build / BUILD_RECORD, _MANIFEST, dataclasses.asdict(self))

    @staticmethod
    def read(build: Path) -> BuildManifest:
        """Read the manifest of a build.

        Raises:
            StateMismatch: There is none.
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        path = build / BUILD_RECORD
        if not path.exists():
            raise StateMismatch(f"there is no {path}, so the build is not complete; {_AGAIN}")
        return BuildManifest(**read_record(path, _MANIFEST))


_MANIFEST: Final = RecordFormat(
    name="tidemill-build",
    version=2,
    fields=frozenset(field.name for field in dataclasses.fields(BuildManifest)),
    remedy=_AGAIN,
    older={1: {"definitions": None}},
)


def source_records(
    log: Log, files: Mapping[str, Sequence[Mapping[str, Any]]], live: LiveRows | None = None
) -> dict[str, dict[str, Any]]:
    """Describe each source of a log: its end, the digest of its rows, its files and live rows."""
    records = {}
    for name in log.sources():
        cut = log.lengths(name)
        record: dict[str, Any] = {
            "cut": cut,
            "digest": log.prefix_digest(name, cut),
            "files": list(files.get(name, ())),
        }
        if live is not None and (found := live.record(name)) is not None:
            record["live"] = found
        records[name] = record
    return records


def table_digests(build: Path) -> dict[str, str]:
    """Digest the files of a build's training table."""
    files = sorted((build / paths.TRAINING_TABLE).glob("*.parquet"))
    return {path.name: file_sha256(path) for path in files}


def check_training_table(build: Path, project: Project, shards: int) -> BuildManifest:
    """Check that a training table is that of its build, of its log and of these definitions.

    Returns:
        The manifest of the build.

    Raises:
        StateMismatch: It is not; the message says what was found and expected.
        StateError: The manifest cannot be read.
    """
    manifest = BuildManifest.read(build)
    found, folder = table_digests(build), build / paths.TRAINING_TABLE
    for name in sorted({*found} | {*manifest.training_table}):
        if found.get(name) == manifest.training_table.get(name):
            continue
        what = "was changed after it was written"
        if name not in found:
            what = "is missing"
        elif name not in manifest.training_table:
            what = "does not belong to the build"
        raise StateMismatch(f"training table: {folder / name} {what}; {_AGAIN}")
    for view in project.views:
        if (made := manifest.views.get(view.name)) != view.hash:
            raise StateMismatch(
                f"view {view.name!r}: the training table was made for definition {made}, this is "
                f"{view.hash}; {_AGAIN}"
            )
    if manifest.project != project.hash:
        raise StateMismatch(
            f"the training table was made for definitions {manifest.project}, these are "
            f"{project.hash}; {_AGAIN}"
        )
    if manifest.shards != shards:
        raise StateMismatch(
            f"the training table was made with {manifest.shards} shards, the configuration says "
            f"{shards}; {_AGAIN}"
        )
    log = Log(build)
    for name, record in manifest.sources.items():
        if log.prefix_digest(name, record["cut"]) != record["digest"]:
            raise StateMismatch(
                f"the log of {name!r} in {build / paths.LOG} is not the one that the training "
                f"table was made from; {_AGAIN}"
            )
    return manifest
