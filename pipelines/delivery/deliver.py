"""The step of the pipeline that writes outputs to a topic and to their folder."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from tidemill.features.errors import EngineError
from tidemill.pipelines.delivery.outbox import Handed, Outbox
from tidemill.pipelines.io.output_parts import Output
from tidemill.pipelines.io.write_outputs import WriteOutputs

_OUTBOXES: dict[tuple[str, str], Outbox] = {}
"""The outboxes of this process, by run and section: the threads of an engine share them."""


def share(run: str, name: str, outbox: Outbox) -> None:
    """Let the steps of a run in this process hand over to an outbox."""
    _OUTBOXES[run, name] = outbox


def forget(run: str) -> None:
    """Let the steps of a run hand over nothing more."""
    for key in [key for key in _OUTBOXES if key[0] == run]:
        del _OUTBOXES[key]


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(str)
class Deliver(beam.DoFn):
    """Hands the record batches of a bundle to the outbox of a topic (`delivery.outbox`).

    Args:
        run: The run's name.
        name: The section of the configuration that names the topic.
        write: The step that would write them to their folder.
    """

    def __init__(self, run: str, name: str, write: WriteOutputs) -> None:
        self._run, self._name, self._write = run, name, write

    def start_bundle(self) -> None:
        """Begin with nothing."""
        self._waiting: dict[int, list[Output]] = {}

    def process(self, element: pa.RecordBatch) -> None:
        """Take a batch, unless it is empty."""
        if element.num_rows:
            segment, output = self._write.output_of(element)
            self._waiting.setdefault(segment, []).append(output)

    def finish_bundle(self) -> None:
        """Hand over what the bundle had.

        Raises:
            BrokerError, FileError: What was handed over before could not be written.
        """
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        outbox = _OUTBOXES.get((self._run, self._name))
        if outbox is None:
            raise EngineError(
                "a step that writes to a topic runs in another process than the stream; use an "
                "engine whose workers are threads of it"
            )
        folder = self._write.folder
        outbox.put([Handed(folder, segment, outputs) for segment, outputs in waiting.items()])
