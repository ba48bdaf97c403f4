"""Comparing the instants of predictions with the times of their labels.

An answer counts events before its instant, so one whose instant is not after its label's event has
not seen it. A request that came so late that its label was there already is answered all the same;
its features may know what the model predicts, so it is counted.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tidemill.features.kernel import hashing
from tidemill.pipelines.history.labels import LabelIndex
from tidemill.pipelines.verify.served import Served, column_of
from tidemill.pipelines.verify.source_history import History


def answered_after_label(history: History, served: Served) -> int:
    """Count the predictions of which a view's instant is after the event that is their label.

    Returns:
        Their number; 0 for a project without a label.
    """
    project = history.project
    if (label := project.label) is None or not served.predictions.num_rows:
        return 0
    events = history.sources[label.stream.name].rows
    times = LabelIndex(label, project.request, events).find(served.requests).times
    instants = [
        hashing.bits(column_of(served.predictions, f"as_of__{view.name}")) for view in project.views
    ]
    after = np.max(instants, axis=0) > hashing.bits(times.cast(pa.int64()))
    return int((after & hashing.validity(times)).sum())
