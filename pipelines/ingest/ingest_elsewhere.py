"""Ingest in workers that do not see the root: what they are given, and what they leave.

The files of sources are copied to the worker's disk, and called by their own names all the same; so
are mended records, and the rows that streams have read of topics. Log, rejected records and counts
are those of any other ingest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import apache_beam as beam

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.live_rows import LiveRows
from tidemill.pipelines.ingest.read_source import alike
from tidemill.pipelines.ingest.read_sources import Ingest
from tidemill.pipelines.ingest.repaired_records import mended_files
from tidemill.pipelines.io.exchange.task_place import Task, TaskPlace
from tidemill.pipelines.io.files.input_files import copied
from tidemill.pipelines.io.log import LOG, ROWS
from tidemill.pipelines.io.sinks import WriteParquet
from tidemill.pipelines.run import paths
from tidemill.serving.files.atomic_write import write_text

COUNTED: Final = "counts"
"""The folder of the counts, below that of the run."""
NAMED_BY: Final = ("stage", "stream", "partition", "position")
"""The columns of rejected records that name their files."""


def write_counts(folder: Path, counts: str) -> Path:
    """Write the counts of a source, JSON; return the file."""
    path = folder / f"{json.loads(counts)['source']}.json"
    write_text(path, counts)
    return path


def needs(
    config: Configuration, build: Path | None, live: LiveRows | None
) -> dict[str, Sequence[Path]]:
    """Return the files that each task reads, by the name of a list.

    Args:
        config: The configuration.
        build: The folder of the build; None if sources are only validated.
        live: The rows that streams have read of topics; None for none.
    """
    found: dict[str, Sequence[Path]] = {}
    for number, group in enumerate(alike(config)):
        found[_files_of(number)] = config.sources[group[0]].find_files()
        others = [path for name in group for path in mended_files(config.root, name)]
        if build is not None:
            others += [path for path in build.glob("*") if path.is_file()]
        for name in group:
            others += [] if live is None else _rows_of(live, name)
        found[_others_of(number)] = others
    return found


def _files_of(number: int) -> str:
    return f"sources-{number:06d}"


def _others_of(number: int) -> str:
    return f"others-{number:06d}"


def _rows_of(live: LiveRows, name: str) -> list[Path]:
    """Return the files with the live rows of a source."""
    if name not in live.topics:
        return []
    # A log begins with the build, whatever of it the live log has.
    found = sorted((live.log.root / LOG / name).glob("*.arrow"))
    return found + sorted((live.log.live or Path()).glob(f"{ROWS}/{name}/*.arrow"))


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class IngestElsewhere(beam.DoFn):
    """Ingests sources in a process that does not see the root.

    Args:
        ingest: Ingests them in one that does.
        work: The folder of the run.
        place: Where the task meets the program.
    """

    def __init__(self, ingest: Ingest, work: Path, place: TaskPlace) -> None:
        self._ingest, self._work, self._place = ingest, work, place

    def process(self, element: str) -> None:
        """Ingest the sources of a group: a JSON list of its number and their names."""
        number, group = json.loads(element)
        with self._place.task(f"ingest-{number:06d}") as task:
            copies = task.take(_files_of(number))
            others = task.take(_others_of(number))
            work = task.at(self._work)
            write = WriteParquet(work / paths.REJECTED, NAMED_BY)
            counted = []
            with copied(copies):
                for found in self._here(task).read(group, list(copies)):
                    if isinstance(found, str):
                        counts = _with_paths(json.loads(found), task, set(others.values()))
                        counted.append(write_counts(work / COUNTED, json.dumps(counts)))
                    else:
                        list(write.process(found.value))
            task.leave(counted)

    def _here(self, task: Task) -> Ingest:
        """Return the same with paths of this machine."""
        found, live = self._ingest, self._ingest.live
        if live is not None:
            log = live.log
            there = None if log.live is None else task.at(log.live)
            live = replace(live, log=replace(log, root=task.at(log.root), live=there))
        return replace(
            found,
            config=replace(found.config, root=task.folder),
            build=None if found.build is None else task.at(found.build),
            work=task.at(found.work),
            live=live,
        )


def _with_paths(counts: dict[str, Any], task: Task, given: set[Path]) -> dict[str, Any]:
    """Call files that the program has below its root as it does."""
    for file in counts.get("files", ()):
        if Path(file["path"]) in given:
            file["path"] = str(task.path_of(Path(file["path"])))
    return counts
