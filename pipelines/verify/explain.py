"""Explaining one prediction: each served value, the oracle's value, and the events it counted.

The events are read from the log, which is fast; `tidemill verify` checks that the log equals the
source files.
"""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import time_of
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.errors import InputError, nearest
from tidemill.features.oracle.values import FeatureValue, Oracle
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.tables import Table
from tidemill.pipelines.stream.rejected_by_stream import rejected_with_id
from tidemill.pipelines.verify.compare_oracle import plain_rows, same
from tidemill.pipelines.verify.definitions_of import configuration_of
from tidemill.pipelines.verify.instants import field_text, instant_text, value_text
from tidemill.pipelines.verify.raw_history import logged_history, with_live_rows
from tidemill.pipelines.verify.release_evidence import Evidence, read_evidence
from tidemill.pipelines.verify.served import find_prediction, read_predictions
from tidemill.pipelines.verify.source_history import EventsByKey

_LISTED: Final = 10
"""How many of a feature's events are printed, the newest first."""
_STAMPS: Final = (
    "bundle_version", "transform_hash", "spec_hash", "padded_rows", "call_row", "device",
    "tensorflow", "xla",
)  # fmt: skip


@dataclass(frozen=True)
class ExplainedValue:
    """One value of a prediction.

    Attributes:
        view: The view.
        column: The feature column.
        dtype: Its dtype; a timestamp's values are in microseconds UTC.
        served: The value that the prediction used.
        recomputed: The oracle's value over all events.
        verdict: ``equal``; ``late`` if the served value is the oracle's over the events that had
            been seen; else ``differs``.
        events: (event time in microseconds, event id) of every counted event, in order.
    """

    view: str
    column: str
    dtype: str
    served: FeatureValue
    recomputed: FeatureValue
    verdict: str
    events: tuple[tuple[int, str | int], ...]


@dataclass(frozen=True)
class ExplainedPrediction:
    """An explained prediction.

    Attributes:
        stamps: Its ids, times, score and bundle, and by view the instant, the release and the
            shard of its values.
        values: Its values, in the order of the feature vector.
    """

    stamps: dict[str, str]
    values: tuple[ExplainedValue, ...]

    def tables(self) -> list[Table]:
        """Return tables of the stamps, the values, and the newest events of each feature."""
        events = []
        for value in self.values:
            for time_us, id in reversed(value.events[-_LISTED:]):
                events.append((value.column, instant_text(time_us), str(id)))
            if len(value.events) > _LISTED:
                older = len(value.events) - _LISTED
                events.append((value.column, f"and {older} older", ""))
        return [
            Table("prediction", ("stamp", "value"), list(self.stamps.items())),
            Table(
                "values",
                ("feature", "served", "recomputed", "", "events"),
                [
                    (
                        value.column,
                        _written(value.served, value.dtype),
                        _written(value.recomputed, value.dtype),
                        value.verdict,
                        str(len(value.events)),
                    )
                    for value in self.values
                ],
                frozenset([1, 2, 4]),
            ),
            Table("events", ("feature", "event time", "event"), events),
        ]


def _written(value: FeatureValue, dtype: str) -> str:
    return "-" if value is None else value_text(value, dtype)


def explain(config: Configuration, request_id: str) -> ExplainedPrediction:
    """Explain a prediction.

    Raises:
        InputError: There is no such prediction, or more than one.
    """
    found = find_prediction(config.root, request_id)
    current = config.current if found is None else found[0]
    of_it = configuration_of(config, current)
    # Of one that cannot be made again, what is of the present definitions is explained.
    config = dataclasses.replace(config, pinned=current) if isinstance(of_it, str) else of_it
    project = config.project
    predictions = read_predictions(current.stream_folder, project)
    mine = predictions.filter(pc.equal(predictions["request_id"], request_id))
    if len(mine) != 1:
        refused = rejected_with_id(current.stream_folder, project.request, request_id)
        if not len(mine) and refused is not None:
            raise InputError(
                f"the request {request_id!r} has no prediction, it was rejected: "
                f"{refused['reason']}, {refused['detail']}"
            )
        known = predictions["request_id"].to_pylist()
        hint = nearest(request_id, known[:1000]) if not len(mine) else "run `tidemill verify`"
        raise InputError(
            f"{len(mine)} predictions in {current.stream_folder / paths.PREDICTIONS} have the id "
            f"{request_id!r}; {hint}"
        )
    history = with_live_rows(config, logged_history(config.current.build_folder, project))
    evidence = read_evidence(config, history)
    prediction: dict[str, Any] = mine.to_pylist()[0]
    place = (history.requests.words("_partition") == prediction["partition"]) & (
        history.requests.words("_position") == prediction["position"]
    )
    request = history.requests.rows.filter(pa.array(place)).to_pylist()
    if not request:
        why = "the log has been written again since: run `tidemill stream`"
        if config.is_live:
            why = "a stream that runs adds it at its next savepoint, or when it is stopped"
        raise InputError(
            f"the request of prediction {request_id!r} is not in the log "
            f"(partition {prediction['partition']}, position {prediction['position']}); {why}"
        )
    values: list[ExplainedValue] = []
    for view in project.views:
        key = request[0][project.request.key_column(view.entity)]
        events = EventsByKey(view, history.of(view))
        values += _explain_view(view, events, evidence, prediction, key)
    return ExplainedPrediction(_stamps(project, prediction), tuple(values))


def _explain_view(
    view: FeatureView,
    events: EventsByKey,
    evidence: Evidence,
    prediction: dict[str, Any],
    key: str | int | None,
) -> list[ExplainedValue]:
    as_of = prediction[f"as_of__{view.name}"]
    window = events.window(key, as_of)
    made = Oracle(view, plain_rows(view, events.rows, window)).explain(key, as_of)
    recomputed = {name: value for part in made.values() for name, value in part.values.items()}
    asked = prediction["request_time"]
    seen = evidence.seen(
        view,
        prediction[f"shard__{view.name}"],
        prediction[f"release__{view.name}"],
        max(prediction["received_us"], time_of(asked) + 1),
    )
    as_seen = recomputed
    if seen is not None and len(known := events.seen(window, seen)) < len(window):
        seen_then = plain_rows(view, events.rows, np.sort(known))
        as_seen = Oracle(view, seen_then).values(key, as_of)
    out = []
    for column in view.columns:
        served, right = prediction[column.name], recomputed[column.name]
        if isinstance(served, datetime.datetime):
            served = time_of(served)
        verdict = "differs"
        if same(served, right):
            verdict = "equal"
        elif same(served, as_seen[column.name]):
            verdict = "late"
        out.append(
            ExplainedValue(
                view.name,
                column.name,
                column.dtype,
                served,
                right,
                verdict,
                made[column.feature].events,
            )
        )
    return out


def _stamp(value: Any) -> str:
    """Write a stamp; a stream without a model has none for scores."""
    if value is None:
        return "none: the stream had no model"
    return repr(value) if isinstance(value, float) else str(value)


def _stamps(project: Project, prediction: dict[str, Any]) -> dict[str, str]:
    stamps = {
        "request": prediction["request_id"],
        "request time": instant_text(prediction["request_time"]),
        "score": _stamp(prediction["score"]),
        "place in the log": f"{prediction['partition']}:{prediction['position']}",
        "received": instant_text(prediction["received_us"]),
        "made (wall clock)": instant_text(prediction["created_us"]),
    }
    # Predictions of earlier versions do not say which row of the call each was.
    stamps |= {n.replace("_", " "): _stamp(prediction[n]) for n in _STAMPS if n in prediction}
    for view in project.views:
        stamps[view.name] = (
            f"as of {instant_text(prediction[f'as_of__{view.name}'])}, release "
            f"{prediction[f'release__{view.name}']} of shard {prediction[f'shard__{view.name}']}"
        )
    for name in project.request.inputs:
        stamps[f"input {name}"] = field_text(name, prediction[name])
    return stamps
