"""Why a stream in eager mode cannot be repeated without the rows of a forgotten entity."""

from __future__ import annotations

import pyarrow as pa

from tidemill.features.contract import SECOND
from tidemill.features.kernel import hashing
from tidemill.features.kernel.prepare import TIME
from tidemill.pipelines.stream.receipt import place_by_receipt
from tidemill.pipelines.stream.sequence import ARRIVAL, REQUEST_ROWS


def test_an_answer_for_another_entity_has_another_instant_without_the_forgotten_row() -> None:
    payment = pa.RecordBatch.from_pydict({TIME: [5 * SECOND], ARRIVAL: [6 * SECOND]})
    request = {field.name: pa.nulls(1, field.type) for field in REQUEST_ROWS}
    request |= {TIME: pa.array([2 * SECOND]), ARRIVAL: pa.array([7 * SECOND])}
    asked = pa.RecordBatch.from_pydict({name: request[name] for name in REQUEST_ROWS.names})
    as_of = [
        hashing.bits(placed.requests.column(TIME)).tolist()
        for events in (payment, None)
        if (placed := place_by_receipt(events, asked, 0, is_answered=False)).requests is not None
    ]
    assert as_of == [[5 * SECOND + 1], [2 * SECOND]]
