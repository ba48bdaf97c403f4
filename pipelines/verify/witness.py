"""The witness of a proof: the history that served values are recomputed from.

Promises:

* The witness is the source files, read again, wherever they still hold the rows that the log of the
  build was made from. Rows that the files got later are left out: nothing was made from them. Of
  the rows of a topic it is the live log.
* If the files were changed since, the log is the witness, and the proof says so. Its rows have the
  digests that they were written with (`pipelines.io.log`), and the build's manifest has the digest
  of all of them.
* Rows that were forgotten (`pipelines.forget`) are those of the log; of the files they are left
  out. All other rows must be equal.
* If files that have *not* changed give other rows than the log, the log is wrong: a mismatch. The
  files are the witness then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import blank_positions
from tidemill.pipelines.forget.witnessed import with_forgotten
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.history.live_retention import removed_faults
from tidemill.pipelines.io.log import PARTITION, POSITION, Log, rows_digest
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.raw_history import logged_history, lost_live_log, read_history
from tidemill.pipelines.verify.source_history import History, SourceHistory
from tidemill.serving.files.file_digest import file_sha256


@dataclass(frozen=True)
class Witness:
    """The history to compare with.

    Attributes:
        history: The rows of every source.
        changed: Source to the reason why its log is the witness; empty where the files are.
        resaved: Source to how its files are not as they were recorded, although they hold the same
            rows: they have grown, or were written again.
    """

    history: History
    changed: Mapping[str, str]
    resaved: Mapping[str, str]


class Witnesses:
    """The witnesses of a proof; the last one is kept, since much is made from one build.

    Args:
        progress: Where progress is shown.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: tuple[Path, frozenset[str], Witness] | None = None

    def of(self, config: Configuration, findings: Findings) -> Witness:
        """Return the witness of a build (`find_witness`); its mismatches are noted once."""
        build, project = config.current.build_folder, config.project
        wanted = frozenset([project.request.name, *(stream.name for stream in project.streams)])
        last = self._last
        if last is None or last[0] != build or not wanted <= last[1]:
            self._last = None  # before another history is read
            last = self._last = build, wanted, find_witness(config, self._progress, findings)
        found = last[2]
        # Definitions of another version of the project read the same rows.
        return dataclasses.replace(found, history=History(project, found.history.sources))


def find_witness(config: Configuration, progress: Progress, findings: Findings) -> Witness:
    """Read the source files again, and compare their rows with the log of the build.

    Args:
        config: The configuration, with the folders to prove.
        progress: Where progress is shown.
        findings: Takes a mismatch for each source whose log is not what its files say.
    """
    build = config.current.build_folder
    manifest, log = BuildManifest.read(build), Log(build)
    logged = logged_history(build, config.project)
    known = [name for name in manifest.sources if name in logged.sources]
    now = {name: _files(config, name) for name in known}
    forgotten = blank_positions(config.root, config.current.generation)
    # A source may have a topic alone.
    there = [name for name in known if now[name] or not config.sources[name].files]
    original = read_history(config, there, progress)
    sources: dict[str, SourceHistory] = {}
    changed, resaved = {}, {}
    if (lost := lost_live_log(config)) is not None:
        cause = "the live log is gone, with what was known when its rows were read"
        findings.add(Mismatch("log", str(lost), seen="no live log", expected="one", cause=cause))
    for fault in removed_faults(config.current, config.project):
        cause = "rows were removed by age, and those that stand in for them were changed"
        findings.add(Mismatch("log", fault, cause=cause))
    for name in known:
        record = manifest.sources[name]
        cut, digest = record["cut"], record["digest"]
        if log.prefix_digest(name, cut) != digest:
            findings.add(
                Mismatch(
                    "log",
                    name,
                    seen=f"rows that do not have the digest of {build.name}",
                    expected=digest,
                    cause="the files of the log were replaced",
                )
            )
        if name not in there:
            gone = (file["path"] for file in record["files"] if not Path(file["path"]).is_file())
            changed[name] = f"{next(gone, 'the source')} is gone"
            sources[name] = logged.sources[name]
            continue
        read = _below(original.sources[name], cut)
        if name in forgotten:
            read = with_forgotten(read, logged.sources[name], forgotten[name])
        if _digest(read, cut) == digest:
            sources[name] = read
            if (why := changed_files(record["files"], now[name])) is not None:
                resaved[name] = why
        elif (why := changed_files(record["files"], now[name])) is not None:
            changed[name] = why
            sources[name] = logged.sources[name]
        elif name in forgotten:
            # A mended record is no file of the source, and is removed with the rest.
            changed[name] = "records of an entity that was forgotten are gone"
            sources[name] = logged.sources[name]
        else:
            findings.add(
                Mismatch(
                    "log",
                    name,
                    seen="other rows than its files hold",
                    expected="the rows of the files",
                    cause="the transform, the configuration of the source, or Tidemill's reader "
                    "gives other rows for the same files"
                    + (", or the live rows were replaced" if config.sources[name].is_live else ""),
                )
            )
            sources[name] = original.sources[name]
    return Witness(History(config.project, sources), changed, resaved)


def changed_files(recorded: Sequence[Mapping[str, Any]], now: Sequence[Path]) -> str | None:
    """Return which of the files that are read now is not as it was recorded; None if all are.

    Files are compared by their bytes, since a root and its sources may have been moved.
    """
    before = [file["sha256"] for file in recorded]
    for path, digest in zip(now, before, strict=False):
        if file_sha256(path) != digest:
            return f"{path} was changed"
    return None if len(now) == len(before) else f"it had {len(before)} files, and has {len(now)}"


def _files(config: Configuration, name: str) -> list[Path]:
    """Return the files of a source; none if they are gone."""
    try:
        return config.sources[name].find_files()
    except ConfigurationError:
        return []


def _below(source: SourceHistory, cut: Sequence[int]) -> SourceHistory:
    """Leave out the rows at and after a cut."""
    if source.partitions != len(cut):
        return source
    limits = np.asarray(cut, np.int64)
    kept = source.words(POSITION) < limits[source.words(PARTITION)]
    rows = source.rows if kept.all() else source.rows.filter(pa.array(kept))
    return dataclasses.replace(source, rows=rows)


def _digest(source: SourceHistory, cut: Sequence[int]) -> str | None:
    if source.partitions != len(cut):
        return None
    partitions = source.words(PARTITION)
    parts = [source.rows.filter(pa.array(partitions == n)) for n in range(source.partitions)]
    if [len(part) for part in parts] != list(cut):
        return None
    return rows_digest(source.definition, parts)
