"""Answers and publications of one view, compared in one way: both hold as of an instant.

What is compared is cut into a `Served`: rows with their instant, shard and release, and the key of
their entity (`pipelines.verify.compare_predictions.compare_view`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, BoolArray, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.feast_objects import EVENT_TIMESTAMP
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.pipelines.verify.compare_predictions import request_arrivals
from tidemill.pipelines.verify.follow.segment_outputs import Published
from tidemill.pipelines.verify.served import Served
from tidemill.pipelines.verify.source_history import History, SourceHistory
from tidemill.serving.online.reader import finish_anchored
from tidemill.serving.publications import entity_keys


def history_of(project: Project, view: FeatureView, rows: pa.Table, partitions: int) -> History:
    """Return some events of a view as a history."""
    counts = Counts(read=len(rows), kept=len(rows))
    source = SourceHistory(view.stream, rows.combine_chunks(), partitions, counts)
    return History(project, {view.stream.name: source})


def some_of(served: Served, rows: BoolArray) -> Served:
    """Return some of what was served."""
    kept = pa.array(rows)
    return replace(
        served, predictions=served.predictions.filter(kept), requests=served.requests.filter(kept)
    )


def published_as_served(
    project: Project, view: FeatureView, published: Sequence[Published]
) -> Served | None:
    """Return publications of a view as if each were the answer to a request at its own instant.

    Anchored values are finished as of this instant. Returns None if there are none.
    """
    request = project.request
    key = request.key_column(view.entity)
    predictions, requests = [], []
    for one in published:
        if one.view != view.name or not len(one.rows):
            continue
        batch = one.rows.combine_chunks().to_batches()[0]
        instants = hashing.bits(batch.column(EVENT_TIMESTAMP))
        keys, count = entity_keys(view, batch), batch.num_rows
        numbers = {
            "as_of": instants,
            "shard": np.full(count, one.shard),
            "release": np.full(count, one.number),
        }
        columns = {
            "request_id": keys.cast(pa.string()),
            **{f"{name}__{view.name}": pa.array(found) for name, found in numbers.items()},
            **{
                column.name: finish_anchored(column, batch.column(column.name), instants)
                for column in view.columns
            },
        }
        predictions.append(pa.RecordBatch.from_pydict(columns))
        asked = {request.request_time: pa.array(instants), key: keys}
        requests.append(pa.RecordBatch.from_pydict(asked))
    if not predictions:
        return None
    found = pa.concat_batches(predictions)
    return Served(found, pa.concat_batches(requests), found.num_rows, found.num_rows, 0)


def counted_before(
    project: Project, view: FeatureView, published: Served, answers: Served
) -> Int64Array:
    """Return before which arrival an event counts in each publication of a release in eager mode.

    An event counts from after the answers whose requests arrived before it did
    (`pipelines.stream.receipt`). So an event counts at an instant if it arrived before every
    request of the release that is answered as of this instant or later.

    Args:
        project: The project.
        view: The view.
        published: Publications (`published_as_served`), ``(rows,)``.
        answers: All answers of their releases.

    Returns:
        int64, ``(rows,)``, in microseconds.
    """
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    arrived = request_arrivals(answers, project.request)
    for place, as_of, at in zip(
        _releases(view, answers), _stamp(view, answers, "as_of"), arrived.tolist(), strict=True
    ):
        found.setdefault(place, []).append((as_of, at))
    before = [
        min((at for of_it, at in found.get(place, ()) if of_it >= as_of), default=TIME_MAX)
        for place, as_of in zip(
            _releases(view, published), _stamp(view, published, "as_of"), strict=True
        )
    ]
    return np.array(before, np.int64)


def _stamp(view: FeatureView, served: Served, name: str) -> list[int]:
    found: list[int] = served.predictions.column(f"{name}__{view.name}").to_pylist()
    return found


def _releases(view: FeatureView, served: Served) -> list[tuple[int, int]]:
    return list(zip(_stamp(view, served, "shard"), _stamp(view, served, "release"), strict=True))
