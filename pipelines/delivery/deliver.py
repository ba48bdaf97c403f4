"""The step of the pipeline that writes to a topic: a transaction for each bundle.

It passes on what is committed. So a step behind it that writes files writes only what the topic
has.
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from tidemill.features.errors import EngineError
from tidemill.pipelines.delivery.outgoing import MESSAGES
from tidemill.pipelines.delivery.topic_sink import MOST_MESSAGES, TopicSink
from tidemill.pipelines.telemetry.metrics import SENT
from tidemill.pipelines.telemetry.running import figures_place

_SINKS: dict[tuple[str, str], TopicSink] = {}
"""The sinks of this process, by run and section: the threads of an engine share them."""


def share(run: str, sink: TopicSink) -> None:
    """Let the steps of a run in this process write to a sink."""
    _SINKS[run, sink.name] = sink


def forget(run: str) -> None:
    """Let the steps of a run write no more."""
    for key in [key for key in _SINKS if key[0] == run]:
        del _SINKS[key]


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch)
class Deliver(beam.DoFn):
    """Writes record batches to a topic, those of a bundle in one transaction.

    A bundle with more than `topic_sink.MOST_MESSAGES` rows is written in several: if the engine
    repeats it, what is there is not written again.

    Args:
        run: The run's name.
        name: The section of the configuration that names the topic.
        stream: The id of the stream.
    """

    def __init__(self, run: str, name: str, stream: str) -> None:
        self._run, self._name, self._stream = run, name, stream

    def start_bundle(self) -> None:
        """Begin with nothing."""
        self._waiting: list[WindowedValue] = []
        self._rows = 0

    def process(
        self, element: pa.RecordBatch, stamp: Timestamp = beam.DoFn.TimestampParam
    ) -> Iterator[WindowedValue]:
        """Take a batch; write when there are many rows.

        Raises:
            BrokerError: The topic cannot be written to.
        """
        self._waiting.append(WindowedValue(element, stamp, [GlobalWindow()]))
        self._rows += element.num_rows
        if self._rows >= MOST_MESSAGES:
            yield from self._write()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Write what the bundle had.

        Raises:
            BrokerError: The topic cannot be written to.
        """
        yield from self._write()

    def _write(self) -> list[WindowedValue]:
        """Write the batches that wait, and return them."""
        waiting, self._waiting, self._rows = self._waiting, [], 0
        batches = [one.value for one in waiting]
        if not (rows := sum(batch.num_rows for batch in batches)):
            return waiting
        sink = _SINKS.get((self._run, self._name))
        if sink is None:
            raise EngineError(
                "a step that writes to a topic runs in another process than the stream; use an "
                "engine whose workers are threads of it"
            )
        make = MESSAGES[self._name]
        sink.write(message for batch in batches for message in make(batch, self._stream))
        figures_place().here().add(SENT, rows, self._name)
        return waiting
