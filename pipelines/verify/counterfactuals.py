"""Counterfactual values of a view: those for a given set of events.

Verification needs them for many small sets: the events below a position vector, or all events but a
lost batch. Each set (a `Case`) becomes an entity of a copy of the view, whose key is the number of
the case, so that one call of the kernel computes all cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import INT64, Entity, FeatureView
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.verify.source_history import EventsByKey

_CASE: Final = "_case"
_COPY: Final = "_copy"
_ROWS_AT_ONCE: Final = 1_000_000


@dataclass(frozen=True, eq=False)
class Case:
    """A set of events and an instant.

    Attributes:
        events: int64: indices of rows of an `EventsByKey`.
        as_of_us: The instant.
        twice: int64: those of them that count twice.
    """

    events: Int64Array
    as_of_us: int
    twice: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.events) + len(self.twice)


def case_view(view: FeatureView) -> FeatureView:
    """Return a copy of a view with the same features, whose entity is a case."""
    stream = dataclasses.replace(
        view.stream, schema={**view.stream.schema, _CASE: INT64, _COPY: INT64}
    )
    return dataclasses.replace(
        view, stream=stream, key=_CASE, entity=Entity("proof_case", dtype=INT64)
    )


def values_of_cases(
    events: EventsByKey, cases: Sequence[Case]
) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    """Compute a view's values for each case.

    Returns:
        The 64-bit patterns and the nulls of the view's columns, ``(cases, columns)``, as
        `pipelines.history.point_in_time.values_at`.
    """
    view = case_view(events.view)
    width = len(view.columns)
    values, nulls = [np.zeros((0, width), np.int64)], [np.zeros((0, width), np.uint8)]
    for some in _in_parts(cases):
        some_values, some_nulls = _values(view, events, some)
        values.append(some_values)
        nulls.append(some_nulls)
    return np.concatenate(values), np.concatenate(nulls)


def _in_parts(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    first, rows = 0, 0
    for place, case in enumerate(cases):
        if rows and rows + len(case) > _ROWS_AT_ONCE:
            yield cases[first:place]
            first, rows = place, 0
        rows += len(case)
    if first < len(cases):
        yield cases[first:]


def _values(
    view: FeatureView, events: EventsByKey, cases: Sequence[Case]
) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    places = np.concatenate([part for case in cases for part in (case.events, case.twice)])
    numbers = np.repeat(np.arange(len(cases)), [len(case) for case in cases])
    # The number of the copy makes it another row, so that it is not dropped as a duplicate.
    copies = np.concatenate(
        [np.repeat([0, 1], [len(case.events), len(case.twice)]) for case in cases]
    )
    rows = events.rows.select(list(events.view.stream.schema)).take(pa.array(places, pa.int64()))
    rows = rows.append_column(_CASE, pa.array(numbers, pa.int64()))
    rows = rows.append_column(_COPY, pa.array(copies, pa.int64()))
    instants = np.array([case.as_of_us for case in cases], np.int64)
    return values_at(view, rows, pa.array(np.arange(len(cases)), pa.int64()), instants)
