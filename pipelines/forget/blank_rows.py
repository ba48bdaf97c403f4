"""Blanking: what stays of a row of the log that names a forgotten entity.

A row stays at its position, with the time of its receipt and its own time, because positions,
watermarks and polls depend on these. Everything else becomes null:

* of a request, all of it. A row without an id is left out when polls are made, and by proofs;
* of an event, what no other entity needs. If the row is also an event of another entity's view,
  the view's key, the columns that its features read, and the event's id stay: its values are
  facts about that other entity, and go on to be recomputed bit for bit. The forgotten key does
  not stay, in whatever column it is; nor does a text that contains it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import STRING, EventStream, FeatureView, Project, Request
from tidemill.features.kernel import hashing
from tidemill.pipelines.forget.subject import Subject

_ORDERED: Final = ("first", "last", "last_k")
"""Folds that choose by time and id."""

Linked = Collection[tuple[object, ...]]
"""Values of the request columns that the label's key consists of, of forgotten requests."""


@dataclass(frozen=True)
class Needed:
    """What somebody else needs of the events of a stream.

    Attributes:
        key: The columns that must not be null for an event to count.
        columns: The columns that are read, with the key.
        is_label: Whether it is the label; else a view.
    """

    key: tuple[str, ...]
    columns: frozenset[str]
    is_label: bool = False


def needed_by_others(project: Project, stream: EventStream, own: Collection[str]) -> list[Needed]:
    """Return what the views of other entities, and the label, need of a stream's events.

    Args:
        project: The project.
        stream: The stream.
        own: The columns that hold the forgotten entity's keys.
    """
    found = []
    for view in project.views_of(stream.name):
        if view.key not in own:
            columns = {view.key, *columns_read(view)} - {*own}
            found.append(Needed((view.key,), frozenset(columns)))
    label = project.label
    if label is not None and label.stream.name == stream.name:
        key = tuple(label.on.values())
        if not {*key} & {*own}:
            columns = {*key, *label.value.columns()} - {*own}
            found.append(Needed(key, frozenset(columns), is_label=True))
    return found


def features_that_read(view: FeatureView, columns: Collection[str]) -> dict[str, int]:
    """Return the features of a view that read some columns of its stream.

    Args:
        view: The view.
        columns: The columns. If the stream's id is among them, features count that choose among
            events of one time by it.

    Returns:
        Feature column to how long after an event it may have it, in microseconds.
    """
    found, stream = {}, view.stream
    for name, aggregation in view.features.items():
        partials = aggregation.partials(stream.schema, stream.event_time)
        read = {column for partial in partials for column in partial.columns}
        if any(partial.fold in _ORDERED for partial in partials):
            read.add(stream.event_id)
        if read & {*columns}:
            for column in view.columns:
                if column.feature == name:
                    found[column.name] = aggregation.window_us + view.hop_us
    return found


def columns_read(view: FeatureView) -> set[str]:
    """Return the columns of its stream that a view's features read."""
    stream = view.stream
    return {
        column
        for aggregation in view.features.values()
        for partial in aggregation.partials(stream.schema, stream.event_time)
        for column in partial.columns
    }


class Blanking:
    """Blanks rows of one source.

    Args:
        project: The project.
        definition: The source.
        subject: The entity.
        salt: Random bytes; new ids of events depend on them, so that every copy of a row gets the
            same.
        linked: Of forgotten requests, what the label's key consists of: events of the label with
            these values are the subject's too.
    """

    def __init__(
        self,
        project: Project,
        definition: EventStream | Request,
        subject: Subject,
        salt: bytes,
        linked: Linked = (),
    ) -> None:
        self._project, self._definition, self._subject = project, definition, subject
        self._salt, self._linked = salt, frozenset(linked)
        self.columns = subject.columns(project, definition)
        self._needed = (
            needed_by_others(project, definition, self.columns)
            if isinstance(definition, EventStream)
            else []
        )

    def named(self, rows: pa.RecordBatch) -> BoolArray:
        """Tell which rows are the subject's, bool ``(rows,)``."""
        return self._subject.named_by(rows, self.columns) | self._is_linked(rows)

    def _is_linked(self, rows: pa.RecordBatch) -> BoolArray:
        """Tell which rows are events of the label of a forgotten request."""
        label = self._project.label
        linked = np.zeros(rows.num_rows, np.bool_)
        if label is None or label.stream.name != self._definition.name or not self._linked:
            return linked
        columns = [rows.column(name).to_pylist() for name in label.on.values()]
        for row, values in enumerate(zip(*columns, strict=True)):
            linked[row] = values in self._linked
        return linked

    def links(self, rows: pa.RecordBatch, named: BoolArray) -> Iterator[tuple[object, ...]]:
        """Yield what the label's key consists of, of requests of the subject."""
        label, request = self._project.label, self._project.request
        if label is None or self._definition.name != request.name:
            return
        if request.request_id not in label.on:
            return  # the label's events are not those of one request
        mine = rows.filter(pa.array(named))
        yield from zip(*(mine.column(name).to_pylist() for name in label.on), strict=True)

    def others(self, rows: pa.RecordBatch, named: BoolArray) -> dict[str, int]:
        """Return the features of other entities that read what of these rows does not stay.

        Args:
            rows: Rows of the log, ``(rows,)``.
            named: Which of them are the subject's.

        Returns:
            Feature column to the last instant as of which its value may depend on one of them.
        """
        found: dict[str, int] = {}
        stream = self._definition
        if not isinstance(stream, EventStream):
            return found
        mine = rows.filter(pa.array(named))
        times = hashing.bits(mine.column(stream.event_time))
        texts = [name for name, dtype in stream.schema.items() if dtype == STRING]
        gone = {*self.columns, *(name for name in texts if self._tells(mine.column(name)).any())}
        if self._subject.within(mine.column(stream.event_id).cast(pa.string())).any():
            gone.add(stream.event_id)
        for view in self._project.views_of(stream.name):
            has_key = hashing.validity(mine.column(view.key))
            if view.key in self.columns or not has_key.any():
                continue
            read = features_that_read(view, gone)
            if view.key in gone:  # some rows are no events of the view any more
                longest_us = view.longest_window_us + view.hop_us
                read = dict.fromkeys((column.name for column in view.columns), longest_us)
            last_us = int(times[has_key].max())
            for feature, for_us in read.items():
                found[feature] = max(found.get(feature, last_us + for_us), last_us + for_us)
        return found

    def blank(self, rows: pa.RecordBatch, named: BoolArray) -> pa.RecordBatch:
        """Return the rows, those that are named blanked; columns that are not declared stay.

        Args:
            rows: Rows of the log, ``(rows,)``.
            named: Which of them are the subject's.
        """
        linked = named & self._is_linked(rows)
        kept = self._kept(rows, linked)
        declared, definition = self._definition.schema, self._definition
        arrays = []
        for name, column in zip(rows.schema.names, rows.columns, strict=True):
            stays = ~named
            if name not in declared or name == definition.time_column:
                stays = np.ones(rows.num_rows, np.bool_)
            elif name == definition.id_column and isinstance(definition, EventStream):
                column = self._new_ids(column, named)
                stays = ~named | self._any(kept, rows.num_rows)
            elif name in kept:
                stays = ~named | (kept[name] & ~self._tells(column))
            arrays.append(null_where(column, ~stays))
        return pa.RecordBatch.from_arrays(arrays, schema=rows.schema)

    def _kept(self, rows: pa.RecordBatch, linked: BoolArray) -> dict[str, BoolArray]:
        """Return which values others need, by column: bool, ``(rows,)``."""
        kept: dict[str, BoolArray] = {}
        for needed in self._needed:
            mine = ~linked if needed.is_label else np.ones(rows.num_rows, np.bool_)
            for name in needed.key:
                column = rows.column(name)
                mine = mine & hashing.validity(column) & ~self._tells(column)
            for name in needed.columns:
                kept[name] = kept.get(name, np.zeros(rows.num_rows, np.bool_)) | mine
        return kept

    @staticmethod
    def _any(kept: dict[str, BoolArray], rows: int) -> BoolArray:
        found = np.zeros(rows, np.bool_)
        for stays in kept.values():
            found |= stays
        return found

    def _tells(self, column: pa.Array) -> BoolArray:
        """Tell which values of a column of another entity contain the key."""
        if pa.types.is_string(column.type):
            return self._subject.within(column)
        return np.zeros(len(column), np.bool_)

    def _new_ids(self, ids: pa.Array, named: BoolArray) -> pa.Array:
        """Give an id that tells the key another one, the same for every copy of the row."""
        tells = named & self._subject.within(ids.cast(pa.string()))
        if not tells.any():
            return ids
        values = ids.to_pylist()
        for row in np.flatnonzero(tells).tolist():
            made = hmac.new(self._salt, str(values[row]).encode(), hashlib.sha256)
            is_text = pa.types.is_string(ids.type)
            values[row] = made.hexdigest() if is_text else int(made.hexdigest()[:15], 16)
        return pa.array(values, ids.type)


def null_where(column: pa.Array, gone: BoolArray) -> pa.Array:
    """Return a column with nulls in some rows, and none of the values that were there.

    Arrow may keep the bytes of a value that becomes null, so they are overwritten first.
    """
    if not gone.any():
        return column
    kept = pa.array(~gone)
    nothing = pa.scalar("" if pa.types.is_string(column.type) else 0).cast(column.type)
    return pc.if_else(kept, pc.if_else(kept, column, nothing), pa.scalar(None, column.type))
