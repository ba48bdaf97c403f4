"""Values of a project's features at given instants, from a few rows: no Beam, no store, no folder.

What is promised here: the rows pass the validation of production, equal ones count once, and the
values are those of the kernel, computed as batch computes them. So a value is exactly what the
training table holds for the same rows, in any order, and what the stream serves when none is late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array, write_instant
from tidemill.features.definitions import (
    ARROW_TYPES,
    TIMESTAMP,
    Entity,
    EventStream,
    FeatureView,
    Project,
)
from tidemill.features.errors import InputError, ProofError, nearest
from tidemill.features.kernel import hashing
from tidemill.features.oracle.values import FeatureValue, Oracle
from tidemill.pipelines.history.labels import check_leaks, find_labels
from tidemill.pipelines.history.point_in_time import columns_of, values_at
from tidemill.pipelines.verify.compare_oracle import plain_rows, plain_values, same
from tidemill.testing.rows import REJECTED_ROWS, CheckedRows, Instant, Rows, check_rows, instants

AS_OF: Final = "as_of"
"""The column of the instants that values are for."""

_LISTED: Final = 10


def features_at(
    definitions: Project | FeatureView,
    events: Mapping[str, Rows],
    *,
    at: Instant | Sequence[Instant] | None = None,
    keys: Sequence[Any] | None = None,
    requests: Rows | None = None,
    skip_rejected: bool = False,
    check_with_oracle: bool = False,
) -> pa.Table:
    """Compute features from rows, at instants or for requests.

    Args:
        definitions: A view, or a project.
        events: Stream to rows (`tidemill.testing.rows.Rows`), in any order; equal rows count once.
            A stream that is left out has no events.
        at: The instants; give these or ``requests``. The views must share one entity.
        keys: With ``at``: the entity's keys, null ones and unknown ones too; by default every key
            that the events have, in order.
        requests: Rows of the project's request.
        skip_rejected: Leave rejected rows out, as a pipeline does, instead of raising.
        check_with_oracle: Compute every value a second time in plain Python
            (`tidemill.features.oracle`) and compare them bit for bit.

    Returns:
        With ``at``, a row for each key and instant: the entity's join key, ``as_of``, and every
        feature column (``view__feature``) in its own type. With ``requests``, a row for each
        request, in the order given, with the columns of the training table: ``request_id``,
        ``request_time``, the request's inputs, every feature column and, where the project has a
        label, ``label`` and ``label_time``.

    Raises:
        InputError: A stream or a column is unknown, a row is rejected, an instant is no time, or a
            label's event does not come after its own request.
        ProofError: The oracle gives another value than the kernel.
        DefinitionError: The oracle has no rule for an aggregation.

    >>> from tidemill import Entity, EventStream, FeatureView, count
    >>> clicks = EventStream("clicks", event_time="at", event_id="id", schema={
    ...     "at": "timestamp", "id": "string", "user": "string"})
    >>> view = FeatureView("user", entity=Entity("user"), stream=clicks, hop="5m", features={
    ...     "clicks_1h": count(over="1h")})
    >>> rows = [{"at": "2026-01-31T10:00:00Z", "id": "c1", "user": "ann"}]
    >>> found = features_at(view, {"clicks": rows}, at="2026-01-31T10:30:00Z")
    >>> found["user__clicks_1h"].to_pylist()
    [1]
    """
    if (at is None) == (requests is None):
        raise InputError("give either at= (instants) or requests= (rows of the project's request)")
    checked = _check_events(definitions, events)
    if not skip_rejected:
        for source in checked.values():
            source.refuse_rejected()
    rows = {name: source.rows for name, source in checked.items()}
    if at is not None:
        return _at_instants(definitions, rows, instants(at), keys, check_with_oracle)
    if keys is not None:
        raise InputError("keys= goes with at=; a request's row has the keys of its entities")
    project = _project_of(definitions)
    asked = check_rows(project.request, requests)
    if not skip_rejected:
        asked.refuse_rejected()
    return _for_requests(project, rows, asked.rows, check_with_oracle)


def rejected_rows(
    definitions: Project | FeatureView, events: Mapping[str, Rows], *, requests: Rows | None = None
) -> pa.Table:
    """Return the rows that validation rejects.

    Args:
        definitions: A view, or a project.
        events: As for `features_at`.
        requests: As for `features_at`.

    Returns:
        ``source``, ``row`` (its place in what was given, from 0), ``reason`` and ``detail``.

    Raises:
        InputError: A stream is unknown, or a dict has a key that is not declared.
    """
    found = [*_check_events(definitions, events).values()]
    if requests is not None:
        request = _project_of(definitions).request
        found.append(check_rows(request, requests))
    return pa.concat_tables([REJECTED_ROWS.empty_table(), *(source.rejected for source in found)])


def _project_of(definitions: Project | FeatureView) -> Project:
    if isinstance(definitions, FeatureView):
        raise InputError(
            f"view {definitions.name!r} alone has no request; give the project, or ask with at="
        )
    return definitions


def _views_of(definitions: Project | FeatureView) -> tuple[FeatureView, ...]:
    return (definitions,) if isinstance(definitions, FeatureView) else tuple(definitions.views)


def _streams_of(definitions: Project | FeatureView) -> tuple[EventStream, ...]:
    if isinstance(definitions, FeatureView):
        return (definitions.stream,)
    return definitions.streams


def _check_events(
    definitions: Project | FeatureView, events: Mapping[str, Rows]
) -> dict[str, CheckedRows]:
    if not isinstance(definitions, Project | FeatureView):
        raise InputError(f"expected a Project or a FeatureView, found {definitions!r}")
    declared = _streams_of(definitions)
    streams = [stream.name for stream in declared]
    if not isinstance(events, Mapping):
        raise InputError(
            f"events: expected a dict of stream to rows, found a {type(events).__name__}; "
            f"streams: {', '.join(streams)}"
        )
    for name in events:
        if name not in streams:
            raise InputError(
                f"events: {name!r} is no event stream of {definitions.name!r}; "
                f"{nearest(str(name), streams)}"
            )
    return {stream.name: check_rows(stream, events.get(stream.name, [])) for stream in declared}


def _at_instants(
    definitions: Project | FeatureView,
    rows: Mapping[str, pa.RecordBatch],
    times_us: Int64Array,
    keys: Sequence[Any] | None,
    check: bool,
) -> pa.Table:
    views = _views_of(definitions)
    entity = _one_entity(definitions)
    wanted = _keys(entity, views, rows, keys)
    every = wanted.take(pa.array(np.repeat(np.arange(len(wanted)), len(times_us))))
    at_us = np.tile(times_us, len(wanted))
    columns: dict[str, pa.Array] = {
        entity.join_key: every,
        AS_OF: pa.array(at_us, pa.int64()).cast(ARROW_TYPES[TIMESTAMP]),
    }
    if len(columns) == 1:
        raise InputError(
            f"entity {entity.name!r}: its join key is called {AS_OF!r}, which is the column of the "
            "instants; ask with requests="
        )
    for view in views:
        columns |= _values(view, rows[view.stream.name], every, at_us, check)
    return pa.table(columns)


def _one_entity(definitions: Project | FeatureView) -> Entity:
    views = _views_of(definitions)
    entities = {view.entity.name: view.entity for view in views}
    if len(entities) > 1:
        raise InputError(
            f"the views of project {definitions.name!r} have the entities {', '.join(entities)}, "
            "and at= asks for the keys of one; ask with requests=, or for one view: "
            f"project.view({views[0].name!r})"
        )
    return views[0].entity


def _keys(
    entity: Entity,
    views: Sequence[FeatureView],
    rows: Mapping[str, pa.RecordBatch],
    keys: Sequence[Any] | None,
) -> pa.Array:
    kind = ARROW_TYPES[entity.dtype]
    if keys is None:
        columns = [rows[view.stream.name].column(view.key) for view in views]
        found = pc.unique(pa.chunked_array(columns, kind).drop_null())
        return found.take(pc.sort_indices(found))
    try:
        return pa.array(list(keys), kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(
            f"keys of entity {entity.name!r}: expected {entity.dtype} or None, found {keys!r}"
        ) from error


def _for_requests(
    project: Project, rows: Mapping[str, pa.RecordBatch], asked: pa.RecordBatch, check: bool
) -> pa.Table:
    request, label = project.request, project.label
    columns: dict[str, pa.Array] = {
        "request_id": asked.column(request.request_id).cast(pa.string()),
        "request_time": asked.column(request.request_time),
    }
    columns |= {name: e.evaluate(asked) for name, e in request.inputs.items()}
    times_us = hashing.bits(asked.column(request.request_time))
    for view in project.views:
        keys = asked.column(request.key_column(view.entity))
        columns |= _values(view, rows[view.stream.name], keys, times_us, check)
    if label is not None:
        requests = pa.Table.from_batches([asked])
        arrived = pa.Table.from_batches([rows[label.stream.name]])
        check_leaks(label, request, requests, arrived)
        found = find_labels(label, request, requests, arrived)
        columns |= {"label": found.values, "label_time": found.times}
    return pa.table(columns)


def _values(
    view: FeatureView, events: pa.RecordBatch, keys: pa.Array, times_us: Int64Array, check: bool
) -> dict[str, pa.Array]:
    columns = columns_of(view, *values_at(view, events, keys, times_us))
    if check:
        _check_with_oracle(view, events, keys, times_us, columns)
    return columns


def _check_with_oracle(
    view: FeatureView,
    events: pa.RecordBatch,
    keys: pa.Array,
    times_us: Int64Array,
    columns: Mapping[str, pa.Array],
) -> None:
    table = pa.Table.from_batches([events])
    oracle = Oracle(view, plain_rows(view, table, np.arange(len(table))))
    kernel: list[dict[str, FeatureValue]] = plain_values(columns)
    differ = [
        f"  {name} of {key!r} as of {write_instant(time_us)}: the kernel gives "
        f"{values[name]!r}, the oracle {right!r}"
        for key, time_us, values in zip(keys.to_pylist(), times_us.tolist(), kernel, strict=True)
        for name, right in oracle.values(key, time_us).items()
        if not same(values[name], right)
    ]
    if differ:
        more = [f"  and {len(differ) - _LISTED} more"] if len(differ) > _LISTED else []
        raise ProofError(
            f"view {view.name!r}: {len(differ)} values differ from the oracle's:\n"
            + "\n".join([*differ[:_LISTED], *more])
        )
