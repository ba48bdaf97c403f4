"""Validate: split polls into polls of valid rows and rejected records.

A poll keeps its positions and watermarks when rows are rejected, so a rejected row is not a gap in
the sequence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.features.rows.validation import validate
from tidemill.pipelines.io.epochs import with_epoch
from tidemill.pipelines.io.log import POSITION, RECEIVED, forgotten_rows
from tidemill.pipelines.io.poll import Poll, PollPart

REJECTED: Final = "rejected"


def validated_poll(project: Project, poll: Poll) -> tuple[Poll, list[pa.RecordBatch]]:
    """Validate the rows of a poll against the declared schemas.

    Args:
        project: The project.
        poll: Rows with any columns, ``_position`` and ``_received``.

    Returns:
        The poll with its valid rows; and the other rows as rejected records
        (`features.rows.rejected.SCHEMA`) whose payload is the row as JSON.
    """
    parts: list[PollPart] = []
    refused: list[pa.RecordBatch] = []
    for part in poll.parts:
        if part.rows is None:
            parts.append(part)
            continue
        definition = project.definition(part.source)
        part, blank = _apart(definition, part)
        assert part.rows is not None
        found = validate(definition, part.rows)
        places = [part.rows.column(POSITION), part.rows.column(RECEIVED)]
        if len(found.rejected_rows):
            kept = pa.array(found.kept)
            places = [column.take(kept) for column in places]
        rows = pa.RecordBatch.from_arrays(
            [*found.batch.columns, *places],
            names=[*found.batch.schema.names, POSITION, RECEIVED],
        )
        rows = rows if blank is None else _together(rows, blank)
        parts.append(replace(part, rows=rows if rows.num_rows else None))
        if len(found.rejected_rows):
            bad = part.rows.take(pa.array(found.rejected_rows))
            positions = hashing.bits(bad.column(POSITION))
            refused.append(
                rejected.batch(
                    rejected.Stage.VALIDATE,
                    stream=part.source,
                    partition=part.partition,
                    positions=positions,
                    reasons=found.reasons,
                    details=found.details,
                    origins=[f"{part.source}/{part.partition}:{at}" for at in positions.tolist()],
                    payloads=[json.dumps(row, default=str).encode() for row in bad.to_pylist()],
                )
            )
    return replace(poll, parts=tuple(parts)), refused


def _apart(
    definition: EventStream | Request, part: PollPart
) -> tuple[PollPart, pa.RecordBatch | None]:
    """Take rows that were forgotten out of a part: they have no id, and were valid rows."""
    assert part.rows is not None
    gone = forgotten_rows(definition, part.rows)
    if not gone.any():
        return part, None
    left = replace(part, rows=part.rows.filter(pa.array(~gone)))
    return left, part.rows.filter(pa.array(gone))


def _together(rows: pa.RecordBatch, blank: pa.RecordBatch) -> pa.RecordBatch:
    """Put rows that were forgotten back in their places, with which polls go on."""
    both = pa.concat_batches([rows, blank.select(rows.schema.names).cast(rows.schema)])
    return both.take(pc.array_sort_indices(both.column(POSITION)))


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(bytes, **{REJECTED: pa.RecordBatch})
@dataclass(eq=False)
class Validate(beam.DoFn):
    """Turns encoded polls into polls of valid rows, and record batches with the tag `REJECTED`.

    Attributes:
        project: The project.
    """

    project: Project

    def process(self, element: bytes) -> Iterator[Any]:
        """Validate the rows of a poll."""
        poll, refused = validated_poll(self.project, Poll.decode(element))
        yield poll.encode()
        for batch in refused:
            yield beam.pvalue.TaggedOutput(REJECTED, with_epoch(batch, poll.epoch))
