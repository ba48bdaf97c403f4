"""Logging publications: they become outputs of the stream, and go to the offline log.

The logs get an output for each release, named by its number, however bundles are cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import apache_beam as beam

from tidemill.features.definitions import Project
from tidemill.pipelines.io.output_parts import PartWriter
from tidemill.pipelines.publish.changes import append_changes
from tidemill.pipelines.publish.newest_rows import runs_by_shard
from tidemill.pipelines.stream.output_folders import publications_of
from tidemill.pipelines.stream.publications import publications_output
from tidemill.pipelines.stream.wire_format import Published, unpack_publications


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(str)
@dataclass(eq=False)
class LogPublications(beam.DoFn):
    """Appends publications (an output of `Featurize`) to their log and to the offline log.

    Attributes:
        project: The project.
        root: The stream's folder.
        offline_root: The folder of the offline logs.
        shards: The number of shards of each view.
        changes: Whether the publications are every change point and continue the offline log.
        segment: The segment of the stream that epoch 0 is (`pipelines.io.epochs`).
    """

    project: Project
    root: Path
    offline_root: Path
    shards: int
    changes: bool = False
    segment: int = 0

    def setup(self) -> None:
        """Begin without a part."""
        self._logs: dict[str, PartWriter] = {}

    def teardown(self) -> None:
        """Close the logs."""
        for log in self._logs.values():
            log.close()

    def start_bundle(self) -> None:
        """Begin a bundle."""
        self._bundle: list[Published] = []

    def process(self, element: bytes) -> Iterator[str]:
        """Collect the publications of a release."""
        self._bundle.append(unpack_publications(element, self.project))
        yield from ()

    def finish_bundle(self) -> None:
        """Log the bundle.

        Raises:
            FileError: The disk is full, ...
            OutputConflict: A release was appended to the offline log before with other rows.
        """
        bundle, self._bundle = self._bundle, []
        for run in runs_by_shard(bundle):
            for epoch, of_epoch in itertools.groupby(run, key=attrgetter("epoch")):
                releases, segment = list(of_epoch), self.segment + epoch
                if self.changes:
                    append_changes(self.project, self.offline_root, self.shards, releases, segment)
                self._log(releases[0].view, releases, segment)

    def _log(self, view: str, releases: list[Published], segment: int) -> None:
        """Append the publications of releases to the log of publications."""
        definition = self.project.view(view)
        if view not in self._logs:
            self._logs[view] = PartWriter(publications_of(self.root, view).path)
        self._logs[view].append(
            segment,
            [
                publications_output(definition, release.rows, release.shard, release.number)
                for release in releases
                if release.rows.num_rows
            ],
        )
