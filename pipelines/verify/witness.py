"""The witness of a proof: the history that served values are recomputed from.

Promises:

* The witness is the source files, read again, wherever they still hold the rows that the log of the
  build was made from. Rows that the files got later are left out: nothing was made from them.
* If the files were changed since, the log is the witness, and the proof says so. Its rows have the
  digests that they were written with (`pipelines.io.log`), and the build's manifest has the digest
  of all of them.
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

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.ingest.source_digests import SourceFile
from tidemill.pipelines.io.log import PARTITION, POSITION, Log, rows_digest
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.raw_history import logged_history, read_history
from tidemill.pipelines.verify.source_history import History, SourceHistory


@dataclass(frozen=True)
class Witness:
    """The history to compare with.

    Attributes:
        history: The rows of every source.
        changed: Source to the reason why its log is the witness; empty where the files are.
    """

    history: History
    changed: Mapping[str, str]


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
    there = [name for name in known if not missing_files(manifest.sources[name]["files"])]
    original = read_history(config, there, progress)
    sources: dict[str, SourceHistory] = {}
    changed = {}
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
            changed[name] = f"{missing_files(record['files'])[0]} is gone"
            sources[name] = logged.sources[name]
            continue
        read = _below(original.sources[name], cut)
        if _digest(read, cut) == digest:
            sources[name] = read
        elif (why := changed_files(record["files"])) is not None:
            changed[name] = why
            sources[name] = logged.sources[name]
        else:
            findings.add(
                Mismatch(
                    "log",
                    name,
                    seen="other rows than its files hold",
                    expected="the rows of the files",
                    cause="the transform, the configuration of the source, or Tidemill's reader "
                    "gives other rows for the same files",
                )
            )
            sources[name] = original.sources[name]
    return Witness(History(config.project, sources), changed)


def missing_files(recorded: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Return which of the recorded files are gone."""
    return [Path(file["path"]) for file in recorded if not Path(file["path"]).is_file()]


def changed_files(recorded: Sequence[Mapping[str, Any]]) -> str | None:
    """Return which of the recorded files was changed since; None if none was."""
    for file in recorded:
        path = Path(file["path"])
        if dataclasses.asdict(SourceFile.of(path)) != dict(file):
            return f"{path} was changed"
    return None


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
