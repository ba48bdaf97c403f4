"""Outputs that wait for a topic: a thread writes them, and what comes meanwhile goes together.

A transaction takes the broker its time, whatever it holds. So bundles hand over their outputs and
end, and while one transaction is committed the next one gathers. The promises:

* Outputs are written in the order in which they were handed over. An output is appended to its part
  (`pipelines.io.output_parts`) when its messages are committed: what is in a file is in the topic.
* What waits is bounded: `Outbox.put` waits, too.
* After a failure nothing is written any more, and every call raises it.

What waits is lost with the process. No savepoint counts before it is written
(`pipelines.stream_run.keeper`), so it is made and handed over again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from tidemill.pipelines.delivery.outgoing import MESSAGES
from tidemill.pipelines.delivery.topic_sink import MOST_MESSAGES, TopicSink
from tidemill.pipelines.io.output_parts import Output, PartWriter
from tidemill.pipelines.telemetry.metrics import SENT
from tidemill.pipelines.telemetry.running import figures_place

_MOST_ROWS: Final = 4 * MOST_MESSAGES
_CLOSE_S: Final = 5.0


class Handed(NamedTuple):
    """Outputs of a segment.

    Attributes:
        folder: The folder of the outputs.
        segment: The segment.
        outputs: The outputs.
    """

    folder: Path
    segment: int
    outputs: Sequence[Output]

    @property
    def rows(self) -> int:
        """The number of their rows."""
        return sum(output.rows.num_rows for output in self.outputs)


class Outbox:
    """Writes outputs to a topic, and then to their parts.

    Args:
        sink: Writes to the topic.
        stream: The id of the stream.
    """

    def __init__(self, sink: TopicSink, stream: str) -> None:
        self._sink, self._stream = sink, stream
        self._changed = threading.Condition()
        self._waiting: deque[Handed] = deque()
        self._rows = 0
        """The rows that wait, and those that are being written."""
        self._failed: BaseException | None = None
        self._is_closed = False
        self._parts: dict[Path, PartWriter] = {}
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"deliver-{sink.name}")
        self._thread.start()

    def put(self, handed: Sequence[Handed]) -> None:
        """Hand outputs over; wait while too much waits.

        Raises:
            BrokerError, FileError: What was handed over before could not be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._rows < _MOST_ROWS or self._failed is not None)
            self._check()
            self._waiting.extend(handed)
            self._rows += sum(one.rows for one in handed)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what `put` would raise."""
        with self._changed:
            self._check()

    def flush(self) -> None:
        """Wait until all is written; errors as for `put`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._rows or self._failed is not None)
            self._check()

    def close(self) -> None:
        """End the thread; what waits is not written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    break
                taken = self._take()
            try:
                self._write(taken)
            except BaseException as error:  # noqa: BLE001 the next call raises it
                with self._changed:
                    self._failed = error
                    self._changed.notify_all()
                break
            with self._changed:
                self._rows -= sum(one.rows for one in taken)
                self._changed.notify_all()
        for part in self._parts.values():
            part.close()

    def _take(self) -> list[Handed]:
        """Take what goes into one transaction: all that waits, if it is not too much."""
        taken = [self._waiting.popleft()]
        rows = taken[0].rows
        while self._waiting and rows + self._waiting[0].rows <= MOST_MESSAGES:
            taken.append(self._waiting.popleft())
            rows += taken[-1].rows
        return taken

    def _write(self, taken: Sequence[Handed]) -> None:
        make = MESSAGES[self._sink.name]
        batches = [output.rows for one in taken for output in one.outputs]
        # Together, since making messages costs by the batch, too.
        rows = sum(one.rows for one in taken)
        for batch in pa.Table.from_batches(batches).combine_chunks().to_batches():
            self._sink.write(make(batch, self._stream))
        figures_place().here().add(SENT, rows, self._sink.name)
        for folder, segment, of_segment in taken:
            if folder not in self._parts:
                self._parts[folder] = PartWriter(folder)
            self._parts[folder].append(segment, of_segment)
