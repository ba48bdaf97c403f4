"""The step of the pipeline that writes outputs to a topic and to their folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import apache_beam as beam
import pyarrow as pa

from tidemill.features.errors import EngineError
from tidemill.pipelines.delivery.outbox import Handed, Outbox
from tidemill.pipelines.io.output_parts import Output
from tidemill.pipelines.io.write_outputs import CollectOutputs, WriteOutputs

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
class Deliver(CollectOutputs):
    """Hands record batches to the outbox of a topic (`delivery.outbox`).

    Args:
        run: The run's name.
        name: The section of the configuration that names the topic.
        write: The step that would write them to their folder.
    """

    def __init__(self, run: str, name: str, write: WriteOutputs) -> None:
        self._run, self._name, self._write = run, name, write

    def output_of(self, element: pa.RecordBatch) -> tuple[int, Output]:
        """Return the segment and the output of a batch."""
        return self._write.output_of(element)

    def pass_on(self, outputs: Mapping[int, Sequence[Output]]) -> None:
        """Hand outputs over.

        Raises:
            BrokerError, FileError: What was handed over before could not be written.
        """
        outbox = _OUTBOXES.get((self._run, self._name))
        if outbox is None:
            raise EngineError(
                "a step that writes to a topic runs in another process than the stream, on an "
                "engine whose workers are threads of it"
            )
        folder = self._write.folder
        outbox.put([Handed(folder, segment, of_it) for segment, of_it in outputs.items()])
