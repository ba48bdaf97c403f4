"""Validate: split polls into polls of valid rows and rejected records.

A poll keeps its positions and watermarks when rows are rejected, so a rejected row is not a gap in
the sequence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

import tidemill.pipelines.io.coders  # noqa: F401 - Beam takes them from its registry
from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.features.rows.validation import validate
from tidemill.pipelines.io.epochs import with_epoch
from tidemill.pipelines.io.log import POSITION, RECEIVED, conformed, forgotten_rows
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
    valid = _valid_together(project, poll)
    for part in poll.parts:
        if part.rows is None:
            parts.append(part)
        elif (part.source, part.partition) in valid:
            parts.append(replace(part, rows=valid[part.source, part.partition]))
        else:
            found, rejections = _validated_part(project.definition(part.source), part)
            parts.append(found)
            refused += rejections
    return replace(poll, parts=tuple(parts)), refused


def _valid_together(project: Project, poll: Poll) -> dict[tuple[str, int], pa.RecordBatch]:
    """Validate the rows of all partitions of a source together.

    The outcome of a row does not depend on others, and a call takes about as long for the rows of
    one partition as for those of all. Sources of which a row is rejected or was forgotten, which is
    rare, are left out.

    Returns:
        The valid rows, by source and partition.
    """
    valid: dict[tuple[str, int], pa.RecordBatch] = {}
    for source in dict.fromkeys(part.source for part in poll.parts):
        batches = {
            part.partition: part.rows
            for part in poll.parts
            if part.source == source and part.rows is not None
        }
        schemas = [rows.schema for rows in batches.values()]
        if not schemas or any(schema != schemas[0] for schema in schemas):
            continue
        definition, rows = project.definition(source), pa.concat_batches(batches.values())
        if rows.column(definition.id_column).null_count:
            continue  # forgotten, or without an id
        found = validate(definition, rows)
        if len(found.rejected_rows):
            continue
        whole = _with_places(found.batch, [rows.column(name) for name in (POSITION, RECEIVED)])
        start = 0
        for partition, some in batches.items():
            valid[source, partition] = whole.slice(start, some.num_rows)
            start += some.num_rows
    return valid


def _with_places(rows: pa.RecordBatch, places: Sequence[pa.Array]) -> pa.RecordBatch:
    """Add the positions and the times of receipt to validated rows."""
    return pa.RecordBatch.from_arrays(
        [*rows.columns, *places], names=[*rows.schema.names, POSITION, RECEIVED]
    )


def _validated_part(
    definition: EventStream | Request, part: PollPart
) -> tuple[PollPart, list[pa.RecordBatch]]:
    """Validate the rows of a partition, of which there are some; see `validated_poll`."""
    part, blank = _apart(definition, part)
    assert part.rows is not None
    found = validate(definition, part.rows)
    places = [part.rows.column(POSITION), part.rows.column(RECEIVED)]
    if len(found.rejected_rows):
        kept = pa.array(found.kept)
        places = [column.take(kept) for column in places]
    rows = _with_places(found.batch, places)
    rows = rows if blank is None else _together(rows, conformed(blank, definition.schema))
    valid = replace(part, rows=rows if rows.num_rows else None)
    if not len(found.rejected_rows):
        return valid, []
    bad = part.rows.take(pa.array(found.rejected_rows))
    positions = hashing.bits(bad.column(POSITION))
    rejection = rejected.batch(
        rejected.Stage.VALIDATE,
        stream=part.source,
        partition=part.partition,
        positions=positions,
        reasons=found.reasons,
        details=found.details,
        origins=[f"{part.source}/{part.partition}:{at}" for at in positions.tolist()],
        payloads=[json.dumps(row, default=str).encode() for row in bad.to_pylist()],
    )
    return valid, [rejection]


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


@beam.typehints.with_input_types(Poll)
@beam.typehints.with_output_types(Poll, **{REJECTED: pa.RecordBatch})
@dataclass(eq=False)
class Validate(beam.DoFn):
    """Turns polls into polls of valid rows, and record batches with the tag `REJECTED`.

    Attributes:
        project: The project.
    """

    project: Project

    def process(self, element: Poll) -> Iterator[Any]:
        """Validate the rows of a poll."""
        poll, refused = validated_poll(self.project, element)
        yield poll
        for batch in refused:
            yield beam.pvalue.TaggedOutput(REJECTED, with_epoch(batch, poll.epoch))
