"""The step of ingest that reads sources, and writes their logs."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.live_rows import LiveRows
from tidemill.pipelines.ingest.read_source import ReadSource, read_together
from tidemill.pipelines.ingest.rejected_shares import EXAMPLE_COLUMNS, EXAMPLES, examples
from tidemill.pipelines.ingest.repaired_records import mended_files
from tidemill.pipelines.ingest.source_digests import digested

REJECTED: Final = "rejected"
"""The tag of the rejected records."""


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str, **{REJECTED: pa.RecordBatch})
@dataclass(eq=False)
class Ingest(beam.DoFn):
    """Reads sources of the same files; writes their logs, emits rejected records, and counts.

    Attributes:
        config: The configuration.
        build: The folder of the build that the logs belong to; None only validates the sources.
        work: A folder for the rows of large sources.
        live: The rows that streams have read of topics; None for none.
    """

    config: Configuration
    build: Path | None
    work: Path
    live: LiveRows | None = None

    def process(self, names: str) -> Iterator[Any]:
        """Ingest the sources with these names, a JSON list; emit the counts of each as JSON."""
        group = json.loads(names)
        yield from self.read(group, self.config.sources[group[0]].find_files())

    def read(self, group: Sequence[str], found: Sequence[Path]) -> Iterator[Any]:
        """Ingest sources; see `process`.

        Args:
            group: Their names.
            found: Their files.
        """
        sources = [ReadSource(self.config, name, self.work / name, found) for name in group]
        reasons = {source.name: Counter[str]() for source in sources}
        seen: dict[str, list[pa.RecordBatch]] = {source.name: [] for source in sources}
        mended = {source.name: mended_files(self.config.root, source.name) for source in sources}
        read = dict.fromkeys([*found, *itertools.chain(*mended.values())])
        with digested(list(read)) as digests:
            for source, batch in read_together(sources):
                reasons[source.name].update(batch.column("reason").to_pylist())
                seen[source.name].append(batch.select(list(EXAMPLE_COLUMNS)))
                yield beam.pvalue.TaggedOutput(REJECTED, batch)
        files = dict(zip(read, digests, strict=True))
        for source in sources:
            row = self._counts(source, reasons[source.name])
            if seen[source.name]:
                row[EXAMPLES] = examples(seen[source.name])
            if self.build is not None:
                of_topic = 0 if self.live is None else sum(self.live.lengths(source.name))
                row["logged"] = sum(source.lengths) + of_topic
                if of_topic:
                    row["live"] = of_topic
                mine = [*found, *mended[source.name]]
                row["files"] = [asdict(files[path]) for path in mine]
            shutil.rmtree(source.work, ignore_errors=True)
            yield json.dumps(row)

    def _counts(self, source: ReadSource, reasons: Counter[str]) -> dict[str, Any]:
        """Write the log of a source that is read; return its counts."""
        row = {
            "source": source.name,
            "read": source.counts.read,
            "dropped": source.counts.dropped,
            "kept": source.counts.kept,
            "mended": source.mended,
            "rejected": sum(reasons.values()),
            "reasons": dict(reasons),
        }
        if self.config.sources[source.name].ambiguous is not None:
            row["repeated_local_times"] = source.counts.resolved
        if (counts := source.write_log(self.build, self.live)) is not None:
            row |= counts.as_figures()
        if source.repeated is not None:
            row["repeated_request_ids"] = source.repeated
        return row
