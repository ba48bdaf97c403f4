"""Comparing a build with its log: its manifest, its states, and their record."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tidemill.features.definitions.canonical import spec_hash
from tidemill.features.errors import StateError, StateVersionError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.build_manifest import BuildManifest, table_digests
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.beginning import find_beginning
from tidemill.pipelines.recovery.handoff import Handoff, cut_digests, read_record
from tidemill.pipelines.recovery.later_states import publishing_options
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.featurize_options import make_operator, operator_key
from tidemill.pipelines.stream.state_files import file_hashes, handed_over, read_handoff, state_path
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text

_CHANGED: Final = "it was changed after it was written, or made from other rows"


def compare_build(config: Configuration, progress: Progress, findings: Findings) -> int:
    """Make the states of a build again, and compare them and the records.

    Args:
        config: The configuration, with the folder of the build.
        progress: Where progress is shown.
        findings: Takes the mismatches.

    Returns:
        The number of states compared.
    """
    build = config.current.build_folder
    manifest, folder = BuildManifest.read(build), build / paths.STATES
    stored = read_record(folder)
    begin = find_beginning(config, build, manifest.as_of_us)
    files: dict[str, str] = {}
    frontiers: dict[str, list[int]] = {view.name: [] for view in config.project.views}
    marks: dict[str, list[str]] = {view.name: [] for view in config.project.views}
    total = len(config.project.views) * config.shards
    with progress.stage("make the handed-over states again", total, "shards") as stage:
        for operator in begin.operators:
            data, path = handed_over(operator), state_path(folder, operator.key)
            files[path.name] = hashlib.sha256(data).hexdigest()
            frontiers[operator.key.view].append(operator.state.frontier_us)
            marks[operator.key.view].append(operator.mark.hex())
            stage.advance(1)
    if _of_another_version(config, folder):
        progress.say(f"{folder}: another version wrote these states, so they are not compared")
        files = dict(stored.files)
    for name, found in file_hashes(folder).items():
        if files.get(name) != found:
            cause = "the rows of the log before the stream give another state"
            findings.add(
                Mismatch("state", name, seen=found, expected=files.get(name, "none"), cause=cause)
            )
    for name in files.keys() - file_hashes(folder).keys():
        findings.add(Mismatch("state", name, seen="none", expected=files[name], cause="it is gone"))
    right = Handoff(
        kind="backfill",
        as_of_us=manifest.as_of_us,
        positions=begin.positions,
        views={view.name: view.hash for view in config.project.views},
        shards=config.shards,
        segment=0,
        frontiers=frontiers,
        polls=0,
        marks=marks,
        began=None,
        mode=None,
        files=files,
        generation=config.current.generation,
        digests=cut_digests(Log(build), begin.positions),
    )
    compare_record(paths.HANDOFF, dataclasses.asdict(stored), dataclasses.asdict(right), findings)
    log = Log(build)
    expected = {
        "generation": config.current.generation,
        "project": config.project.hash,
        "views": right.views,
        "shards": config.shards,
        "training_table": table_digests(build),
        "handoff": right.id,
        "sources": {
            name: {"cut": log.lengths(name), "digest": log.prefix_digest(name, log.lengths(name))}
            for name in log.sources()
        },
    }
    found_sources = {
        name: {field: record.get(field) for field in ("cut", "digest")}
        for name, record in manifest.sources.items()
    }
    seen = {**dataclasses.asdict(manifest), "sources": found_sources}
    if manifest.definitions is not None and spec_hash(manifest.definitions) != config.project.hash:
        expected["definitions"] = config.project.spec()
    compare_record("build.json", {name: seen[name] for name in expected}, expected, findings)
    return len(files)


def _of_another_version(config: Configuration, folder: Path) -> bool:
    """Tell whether states were written in another version of their format."""
    options = publishing_options(config)
    for index in range(len(config.project.views)):
        operator = make_operator(
            config.project, operator_key(config.project, index, 0, config.shards), options
        )
        try:
            read_handoff(folder, operator)
        except StateVersionError:
            return True
        except (StateError, FileNotFoundError):
            continue  # what is wrong with it is noted
    return False


def compare_record(
    name: str, seen: Mapping[str, Any], expected: Mapping[str, Any], findings: Findings
) -> None:
    """Compare the fields of a record; each that differs is a mismatch."""
    for field, right in expected.items():
        if seen.get(field) != right:
            findings.add(
                Mismatch(
                    "record", name, feature=field, seen=_short(field, seen.get(field)),
                    expected=_short(field, right), cause=_CHANGED,
                )
            )  # fmt: skip


def _short(field: str, value: Any) -> str:
    text = field_text(field, value)
    return text if len(text) <= 120 else f"{text[:117]}..."
