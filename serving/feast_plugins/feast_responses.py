"""The response of Feast's SDK, made of stored rows column by column.

Feast's own step (``feast.utils._populate_response_from_feature_data``) takes a dict of messages for
each row and copies every message three times. Here numbers go from the cells straight into the
response, and what all features of a view share, statuses and times, is made once. Both ways make
equal messages of the same rows (`tests/serving/feast_plugins/feast_responses_test.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from feast import FeatureView
from feast.metrics import track_feature_statuses
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from google.protobuf.timestamp_pb2 import Timestamp

from tidemill.features.contract import SECOND, ReadStatus
from tidemill.features.definitions import INT64
from tidemill.features.feast_objects import REVISION, VALID_UNTIL
from tidemill.serving.online.cells import Value, decode_columns, is_word
from tidemill.serving.online.database import Snapshot
from tidemill.serving.online.feast_rows import PROTO_FIELD, StoredView
from tidemill.serving.online.rows import Row

_NS_PER_US: Final = 1_000
_STATUS: Final = {status: FieldStatus.Value(status.name) for status in ReadStatus}
_NOT_FOUND: Final = _STATUS[ReadStatus.NOT_FOUND]


@dataclass(frozen=True)
class Asked:
    """The part of a request about one view.

    Attributes:
        table: The view as the registry has it.
        features: The names of the features.
        places: For each row that is read, its places in the response; each place once.
        length: Number of places in the response.
    """

    table: FeatureView
    features: Sequence[str]
    places: Sequence[Sequence[int]]
    length: int


def add_to_response(
    response: GetOnlineFeaturesResponse,
    asked: Asked,
    view: StoredView,
    snapshot: Snapshot,
    statuses: Sequence[ReadStatus],
) -> None:
    """Append a vector for each requested feature; only ``PRESENT`` rows have values.

    The snapshot and the statuses are in the order of `Asked.places`.
    """
    sources: list[int] = [0] * asked.length
    for source, destinations in enumerate(asked.places):
        for place in destinations:
            sources[place] = source
    head = _head(snapshot.rows, statuses, sources)
    given: list[Row] = []
    numbers = []
    for row, status in zip(snapshot.rows, statuses, strict=True):
        if row is not None and status is ReadStatus.PRESENT:
            numbers.append(len(given))
            given.append(row)
        else:
            numbers.append(-1)  # the null after the last value of each column
    columns = _columns(view, given)
    order = [numbers[source] for source in sources]
    known = 0
    for name in asked.features:
        vector = response.results.add()
        if name not in columns:
            _fill_not_found(vector, asked.length)
            continue
        known += 1
        vector.MergeFromString(head)
        dtype, values = columns[name]
        _fill(vector.values, dtype, [values[number] for number in order])
    found = known * sum(snapshot.rows[source] is not None for source in sources)
    track_feature_statuses(asked.table.name, found, asked.length * len(asked.features) - found)


def name_features(
    response: GetOnlineFeaturesResponse,
    asked: Asked,
    *,
    full_feature_names: bool,
    with_versions: bool,
) -> None:
    """Append the names of the requested features, in Feast's form."""
    projection = asked.table.projection
    prefix = f"{projection.name_to_use()}__" if full_feature_names else ""
    metadata = response.metadata
    metadata.feature_names.val.extend([prefix + name for name in asked.features])
    if with_versions:
        name = projection.name_alias or projection.name
        if all(view.name != name for view in metadata.feature_view_metadata):
            version = getattr(asked.table, "current_version_number", 0) or 0
            metadata.feature_view_metadata.add(name=name, version=version)


def _head(
    rows: Sequence[Row | None], statuses: Sequence[ReadStatus], sources: Sequence[int]
) -> bytes:
    """Return the statuses and times, which all vectors of a view share, as a message."""
    times = [Timestamp() if row is None else _timestamp(row.event_timestamp) for row in rows]
    codes = [_STATUS[status] for status in statuses]
    vector = GetOnlineFeaturesResponse.FeatureVector(
        statuses=[codes[source] for source in sources],
        event_timestamps=[times[source] for source in sources],
    )
    head: bytes = vector.SerializeToString()
    return head


def _timestamp(time_us: int) -> Timestamp:
    seconds, rest_us = divmod(time_us, SECOND)
    return Timestamp(seconds=seconds, nanos=rest_us * _NS_PER_US)


def _columns(view: StoredView, rows: Sequence[Row]) -> dict[str, tuple[str, list[Value]]]:
    """Return dtype and values of each column by name, with a null after the last value."""
    space = view.space
    values = decode_columns(space.dtypes, [row.cells for row in rows])
    out = {
        name: (dtype, [*column, None])
        for (name, dtype), column in zip(space.columns, values, strict=True)
    }
    if VALID_UNTIL in view.technical:
        out[VALID_UNTIL] = (INT64, [*(row.valid_until for row in rows), None])
    if REVISION in view.technical:
        out[REVISION] = (INT64, [*(row.revision for row in rows), None])
    return out


def _fill(values: Any, dtype: str, column: Sequence[Value]) -> None:
    add = values.add
    if is_word(dtype):
        field = PROTO_FIELD[dtype]
        for value in column:
            message = add()
            if value is not None:
                setattr(message, field, value)
    else:
        for value in column:
            message = add()
            if value is not None:
                message.ParseFromString(value)


def _fill_not_found(vector: Any, length: int) -> None:
    vector.statuses.extend([_NOT_FOUND] * length)
    for _ in range(length):
        vector.values.add()
        vector.event_timestamps.add()
