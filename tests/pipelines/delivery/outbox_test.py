"""The outbox: in order, together while a transaction lasts, and to the file after the topic."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill.features.errors import MessagesNotWritten
from tidemill.pipelines.config.sink_section import PREDICTIONS
from tidemill.pipelines.delivery import outbox as module
from tidemill.pipelines.delivery.outbox import Handed, Outbox
from tidemill.pipelines.delivery.outgoing import Outgoing
from tidemill.pipelines.io.output_parts import Output
from tidemill.pipelines.io.outputs import OutputFolder

WAIT_S = 60.0


class Sink:
    """A sink whose transactions end when they may."""

    name = PREDICTIONS

    def __init__(self, folder: Path) -> None:
        self.folder = OutputFolder(folder)
        self.begun, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.transactions: list[list[int]] = []
        self.in_file: list[int] = []
        self.fails = False

    def write(self, messages: Iterable[Outgoing]) -> None:
        places = [message.place.position for message in messages]
        self.in_file.append(self.folder.count())
        self.begun.release()
        assert self.may_end.acquire(timeout=WAIT_S)
        if self.fails:
            raise MessagesNotWritten("the broker is away")
        self.transactions.append(places)


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path / "out")


def handed(sink: Sink, *positions: int, segment: int = 1) -> Handed:
    rows = {
        "request_id": [f"r-{position}" for position in positions],
        "partition": pa.array([0] * len(positions), pa.int64()),
        "position": pa.array(positions, pa.int64()),
        "bundle_version": pa.nulls(len(positions), pa.string()),
        "spec_hash": ["0123"] * len(positions),
        "sent_us": pa.array(positions, pa.int64()),
        "created_us": pa.array(positions, pa.int64()),
    }
    output = Output(f"{positions[0]:06d}", pa.RecordBatch.from_pydict(rows))
    return Handed(sink.folder.path, segment, [output])


def opened(sink: Any) -> Outbox:
    return Outbox(sink, "stream")


def test_what_comes_during_a_transaction_goes_together_and_in_order(sink: Sink) -> None:
    outbox = opened(sink)
    outbox.put([handed(sink, 0, 1)])
    assert sink.begun.acquire(timeout=WAIT_S)
    for position in (2, 3, 4):
        outbox.put([handed(sink, position, segment=position)])
    sink.may_end.release()
    assert sink.begun.acquire(timeout=WAIT_S)
    sink.may_end.release()
    outbox.flush()
    assert sink.transactions == [[0, 1], [2, 3, 4]]
    # Nothing is in the file before the topic has it.
    assert sink.in_file == [0, 2]
    assert sink.folder.count() == 5
    assert sorted({file.last for file in sink.folder.files()}) == [1, 2, 3, 4]
    outbox.close()


def test_what_waits_is_bounded(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ROWS", 3)
    outbox = opened(sink)
    outbox.put([handed(sink, 0, 1, 2)])
    waits = threading.Thread(target=lambda: outbox.put([handed(sink, 3)]), daemon=True)
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    for _ in range(2):
        sink.may_end.release()
    waits.join(WAIT_S)
    assert not waits.is_alive()
    outbox.flush()
    assert sink.transactions == [[0, 1, 2], [3]]
    outbox.close()


def test_a_failure_is_raised_by_whatever_is_called_next(sink: Sink) -> None:
    sink.fails = True
    outbox = opened(sink)
    outbox.put([handed(sink, 0)])
    assert sink.begun.acquire(timeout=WAIT_S)
    outbox.put([handed(sink, 1)])
    sink.may_end.release()
    for call in (outbox.flush, outbox.check, lambda: outbox.put([handed(sink, 2)])):
        with pytest.raises(MessagesNotWritten, match="the broker is away"):
            call()
    assert not sink.folder.has_any()
    outbox.close()


def test_what_waits_is_not_written_any_more_when_it_is_closed(sink: Sink) -> None:
    outbox = opened(sink)
    outbox.put([handed(sink, 0)])
    assert sink.begun.acquire(timeout=WAIT_S)
    outbox.put([handed(sink, 1)])
    threading.Timer(0.1, sink.may_end.release).start()
    outbox.close()
    assert sink.transactions == [[0]]
    assert sink.folder.count() == 1
