"""The quality of the streamed predictions: their scores, compared with later labels.

Partition and position of a prediction give its request in the log; the rule of the training table
gives the label of the request (`pipelines.history.labels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Project
from tidemill.features.errors import InputError
from tidemill.pipelines.history.labels import find_labels
from tidemill.pipelines.io.log import POSITION, Log
from tidemill.pipelines.report.pictures import Curve
from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.pipelines.training.evaluation import Metrics, calibration, measure, roc_points

STREAMED: Final = "streamed period"

_NEEDED: Final = ("request_time", "partition", "position", "score")
_STAMPS: Final = ("bundle_version", "tensorflow", "device", "xla")
_CLOCKS: Final = ("sent_us", "created_us")


@dataclass(frozen=True)
class StreamedPredictions:
    """The columns of a stream's predictions that the report needs.

    Attributes:
        rows: ``request_time``, ``partition``, ``position`` and ``score``, and if the predictions
            have them, the times ``sent_us`` and ``created_us``.
        stamps: The distinct values of bundle version, TensorFlow version, device and XLA flag, as
            sorted texts.
    """

    rows: pa.Table
    stamps: dict[str, tuple[str, ...]]

    def latency_ms(self) -> npt.NDArray[np.float64]:
        """Return the wall-clock time from the poll that read each request to its score.

        Returns:
            float64, ``(predictions,)``, in milliseconds; empty if the times are missing.
        """
        if not set(_CLOCKS) <= set(self.rows.column_names):
            return np.empty(0)
        sent, created = (self.rows[name].to_numpy() for name in _CLOCKS)
        took: npt.NDArray[np.float64] = (created - sent) / 1_000
        return took


def read_streamed(root: Path) -> StreamedPredictions | None:
    """Read the predictions of the last stream.

    Returns:
        None before the first prediction.
    """
    parts = []
    found = predictions_of(root).tables(_NEEDED, optional=(*_STAMPS, *_CLOCKS))
    parts = [rows for _, rows in found]
    if not any(len(part) for part in parts):
        return None
    table = pa.concat_tables(parts)
    stamps = {
        name: tuple(sorted(str(value) for value in table[name].unique().to_pylist()))
        for name in _STAMPS
        if name in table.column_names
    }
    return StreamedPredictions(table.drop_columns(list(stamps)), stamps)


@dataclass(frozen=True)
class StreamQuality:
    """The quality of a stream's predictions.

    Attributes:
        predictions: The number of predictions.
        labelled: The number of predictions with a label.
        strangers: The number of predictions without a request in the log, hence without a label.
        metrics: The metrics of the labelled predictions; None if they cannot be measured.
        curve: Their calibration and ROC curve; None likewise.
        why_not: A sentence that says why they cannot be measured; empty if they can.
    """

    predictions: int
    labelled: int
    strangers: int
    metrics: Metrics | None = None
    curve: Curve | None = None
    why_not: str = ""

    @property
    def unlabelled_share(self) -> float:
        """The share of the predictions without a label."""
        return 1 - self.labelled / self.predictions


def stream_quality(project: Project, log: Log, streamed: StreamedPredictions) -> StreamQuality:
    """Compare predictions with the labels in the log, those that came by topic included.

    Raises:
        InputError: The log of the requests or of the label's stream is missing.
    """
    label, request = project.label, project.request
    assert label is not None
    partitions: Int64Array = streamed.rows["partition"].to_numpy()
    positions: Int64Array = streamed.rows["position"].to_numpy()
    scores = streamed.rows["score"].to_numpy().astype(np.float64)
    columns = [*dict.fromkeys([*label.on, request.request_time]), POSITION]
    found, kept = [], []
    for partition in range(log.partitions(request.name)):
        asked = log.read(request.name, partition, columns)
        known: Int64Array = asked[POSITION].to_numpy()
        rows = np.flatnonzero(partitions == partition)
        place = np.searchsorted(known, positions[rows])
        there = place < len(known)
        there[there] = known[place[there]] == positions[rows][there]
        found.append(asked.take(pa.array(place[there])))
        kept.append(scores[rows[there]])
    requests = pa.concat_tables(found)
    labels = find_labels(label, request, requests, log.read(label.stream.name)).values
    labelled = labels.is_valid().to_numpy(zero_copy_only=False)
    truth = labels.filter(pa.array(labelled)).to_numpy(zero_copy_only=False)
    given = np.concatenate(kept)[labelled]
    counts = (len(scores), len(truth), len(scores) - len(requests))
    if not len(truth):
        return StreamQuality(*counts, why_not="None of these predictions has a label yet.")
    try:
        metrics = measure(truth, given)
    except InputError as error:
        return StreamQuality(*counts, why_not=f"These scores cannot be measured: {error}.")
    curve = Curve(STREAMED, calibration(truth, given), roc_points(truth, given))
    return StreamQuality(*counts, metrics, curve)
