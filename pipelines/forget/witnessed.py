"""Rows that were forgotten, in a history that is read from source files again.

The files may have the rows still, or a person has removed what they held; the log has the places.
So that all other rows can be compared, the rows at these places are taken from the log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.pipelines.io.log import PARTITION, POSITION


class Rows(Protocol):
    """Rows of a source with their places (`pipelines.verify.source_history.SourceHistory`)."""

    @property
    def rows(self) -> pa.Table:
        """The rows."""

    def words(self, column: str) -> Int64Array:
        """Return a column as int64."""


History = TypeVar("History", bound=Rows)


def with_forgotten(read: History, logged: Rows, blank: Mapping[int, Sequence[range]]) -> History:
    """Take the rows that were forgotten from the log.

    Args:
        read: What was read again, by partition and position.
        logged: What the log has.
        blank: The forgotten rows: partition to ranges of positions.

    Returns:
        The rows that were read with those of the log in their places; unchanged if the two do not
        have the same places, which their digests will tell.
    """
    if len(read.rows) != len(logged.rows) or not _same_places(read, logged):
        return read
    partitions, positions = read.words(PARTITION), read.words(POSITION)
    taken = np.zeros(len(read.rows), np.bool_)
    for partition, ranges in blank.items():
        for one in ranges:
            inside = (positions >= one.start) & (positions < one.stop)
            taken |= inside & (partitions == partition)
    mask = pa.chunked_array([pa.array(taken)])
    columns = [
        pc.if_else(mask, logged.rows.column(name), read.rows.column(name))
        for name in read.rows.column_names
    ]
    rows = pa.table(columns, schema=read.rows.schema).combine_chunks()
    return dataclasses.replace(read, rows=rows)  # type: ignore[type-var]


def _same_places(read: Rows, logged: Rows) -> bool:
    return all(
        np.array_equal(read.words(name), logged.words(name)) for name in (PARTITION, POSITION)
    )
