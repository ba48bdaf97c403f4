"""Lineage: what an artefact was made from, back to the source files and their digests.

Every step is read from the record beside the artefact, and compared with what is there now: a
source file that was changed since, rows of a log that do not have the recorded digest, a training
table with other files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidemill.features.errors import InputError
from tidemill.pipelines.history.build_manifest import BUILD_RECORD, BuildManifest, table_digests
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.run import paths
from tidemill.pipelines.verify.served import find_prediction
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.files.file_digest import file_sha256
from tidemill.serving.generations.current import GENERATIONS, Current

_AGAIN = "run `tidemill stream` again"


@dataclass
class Link:
    """A step of a lineage.

    Attributes:
        what: The artefact, in a line.
        parents: What it was made from.
    """

    what: str
    parents: list[Link] = field(default_factory=list)

    def lines(self, depth: int = 0) -> list[str]:
        """Return the chain as lines, each parent indented below what was made from it."""
        below = [line for parent in self.parents for line in parent.lines(depth + 1)]
        return ["  " * depth + self.what, *below]


def lineage(root: Path, place: str) -> Link:
    """Return the chain of an artefact.

    Args:
        root: The root.
        place: A file or folder below the root, the version of a bundle, or the id of a request
            that was answered.

    Raises:
        InputError: There is no such artefact.
        StateError: A record on the way cannot be read.
    """
    path = Path(place)
    for candidate in (path.absolute(), (root / path).absolute()):
        if candidate.exists() and candidate.is_relative_to(root):
            return _of_path(root, candidate)
    if (root / paths.BUNDLES / place).is_dir():
        return _of_bundle(root, root / paths.BUNDLES / place)
    return _of_prediction(root, place)


def _of_path(root: Path, path: Path) -> Link:
    parts = path.relative_to(root).parts
    if len(parts) >= 2 and parts[0] == paths.BUNDLES:
        return _of_bundle(root, root / paths.BUNDLES / parts[1])
    if len(parts) >= 3 and parts[0] == GENERATIONS:
        kind, _, number = parts[2].rpartition("-")
        current = Current(root, parts[1], 0, 0, 0)
        rest = "/".join(parts[2:])
        if kind == "build":
            return Link(rest, [_of_build(current.folder / parts[2])])
        if kind == "offline":
            return Link(f"{rest}: change points", [_of_build(current.newest_build)])
        if kind == "stream":
            return Link(rest, [_of_stream(current.with_stream(int(number)))])
    raise InputError(
        f"{path} is no artefact with a lineage: name something below {root / GENERATIONS} or "
        f"{root / paths.BUNDLES}, the version of a bundle, or the id of an answered request"
    )


def _of_prediction(root: Path, request_id: str) -> Link:
    found = find_prediction(root, request_id)
    if found is None:
        raise InputError(
            f"{request_id!r} is neither a path below {root}, nor the version of a bundle, nor the "
            "id of an answered request"
        )
    current, path, row = found
    releases = ", ".join(
        f"{name.removeprefix('release__')} {row[name]}"
        for name in row
        if name.startswith("release__")
    )
    version = row["bundle_version"]
    score = "no score, since the stream had no model"
    if version is not None:
        score = f"score {row['score']}"
    return Link(
        f"prediction for request {request_id}: {score} ({path.name})",
        [
            *([] if version is None else [_of_bundle(root, root / paths.BUNDLES / version)]),
            Link(f"releases: {releases}", [_of_stream(current)]),
        ],
    )


def _of_stream(current: Current) -> Link:
    run = StreamRun.read(current.stream_folder)
    if run is None:
        raise InputError(f"{current.stream_folder} has no {paths.STREAM_RUN}: it never began")
    what = (
        f"stream {current.stream} of generation {run.generation}, mode {run.mode}, began with "
        f"states {run.began}"
    )
    return Link(what, [_of_build(current.newest_build)])


def _of_bundle(root: Path, folder: Path) -> Link:
    if not folder.is_dir():
        return Link(f"bundle {folder.name}: its folder is gone")
    bundle = Bundle.load(folder)
    found = bundle.manifest.get("lineage") or {}
    what = f"bundle {bundle.version}, of definitions {bundle.feature_spec_hash}"
    made_from = Link(f"training table of generation {found.get('generation', 'unknown')}")
    build = root / GENERATIONS / str(found.get("generation")) / str(found.get("build"))
    if (build / BUILD_RECORD).exists():
        made_from.parents.append(_of_build(build))
    else:
        made_from.parents += _sources(found.get("sources", {}), None)
    return Link(what, [made_from])


def _of_build(build: Path) -> Link:
    manifest = BuildManifest.read(build)
    what = f"{build.name} of generation {manifest.generation}"
    if manifest.parent is not None:
        what += f", after {manifest.parent} ({'; '.join(manifest.because)})"
    states = read_record(build / paths.STATES)
    table = "as written" if table_digests(build) == manifest.training_table else "CHANGED"
    return Link(
        what,
        [
            Link(f"training table: {len(manifest.training_table)} files, {table}"),
            Link(f"states {states.id}: {len(states.files)} files, positions {states.positions}"),
            *_sources(manifest.sources, Log(build)),
        ],
    )


def _sources(sources: Mapping[str, Mapping[str, Any]], log: Log | None) -> list[Link]:
    links = []
    for name, record in sources.items():
        state = ""
        if log is not None:
            same = log.prefix_digest(name, record["cut"]) == record["digest"]
            state = ", as written" if same else ", CHANGED"
        what = f"log of {name}: rows {record['cut']}, digest {record['digest']}{state}"
        links.append(Link(what, [*_files(record.get("files", ())), *_live(record.get("live"))]))
    return links


def _live(record: Mapping[str, Any] | None) -> list[Link]:
    if record is None or not record["rows"]:
        return []
    return [
        Link(
            f"topic {record['topic']}: {record['rows']:,} rows, polls 1 to {record['polls']:,}, "
            f"read up to {record['read_until']}",
            [Link(said) for said in record.get("lost", ())],
        )
    ]


def _files(files: Sequence[Mapping[str, Any]]) -> list[Link]:
    links = []
    for file in files:
        path = Path(file["path"])
        state = "gone"
        if path.is_file():
            state = "unchanged" if file_sha256(path) == file["sha256"] else "changed since"
        links.append(Link(f"{path}: {file['size']:,} bytes, sha256 {file['sha256']}, {state}"))
    return links
