"""What Beam's workers in this process report of a bundle: the metrics of the steps, and no others.

Beam's own metrics (for each step four times, and for each of its outputs two sizes) take a third of
the time of a bundle of a few rows, and nobody reads them: Tidemill has its own figures
(`pipelines.telemetry`). To sample the times, Beam starts a thread for each bundle, and at the
bundle's end waits until it wakes up: by a tenth of the bundle's time. FnApiRunner also keeps the
metrics of every bundle: it sums them up lazily, one generator around the other, so a stream of a
day would fill the memory, and reading the metrics of a run of more than some 900 bundles exceeds
Python's recursion limit.

The promise: what the steps count (`apache_beam.metrics.Metrics`) arrives as before, and a run takes
no more memory the longer it is.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable
from typing import Any, Final

from apache_beam.metrics import monitoring_infos
from apache_beam.metrics.cells import CounterCell
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.worker import sdk_worker, statesampler
from apache_beam.runners.worker.bundle_processor import BundleProcessor

_NAMES_STREAM: Final = (
    "data_stream_id" in inspect.signature(BundleProcessor.process_bundle).parameters
)
"""Whether a bundle's data has a stream of its own: since Beam 2.77."""


def report_metrics_of_steps() -> None:
    """Let the workers and the FnApiRunner of this process do so, from the next run on.

    Beam has no option for it.
    """
    vars(sdk_worker)["SdkWorker"] = _Worker
    vars(statesampler)["StateSampler"] = _Untimed
    vars(fn_runner)["consolidate_monitoring_infos"] = _summed_up


class _Worker(sdk_worker.SdkWorker):
    """Beam's worker; it overrides how a bundle is answered."""

    def process_bundle(
        self, request: beam_fn_api_pb2.ProcessBundleRequest, instruction_id: str
    ) -> beam_fn_api_pb2.InstructionResponse:
        """Process a bundle as Beam's worker does; answer with the metrics of its steps."""
        cache = self.bundle_processor_cache
        try:
            processor = cache.get(instruction_id, request.process_bundle_descriptor_id)
            with (
                processor.state_handler.process_instruction_id(
                    instruction_id, request.cache_tokens
                ),
                self.maybe_profile(instruction_id),
            ):
                stream = (request.data_stream_id,) if _NAMES_STREAM else ()
                residuals, finalizes = processor.process_bundle(instruction_id, *stream)
                infos = _of_steps(processor)
            if not finalizes:
                cache.release(instruction_id)
        except Exception as error:
            cache.discard(instruction_id, error)
            raise
        answer = beam_fn_api_pb2.ProcessBundleResponse(
            residual_roots=residuals,
            monitoring_infos=infos,
            monitoring_data={
                sdk_worker.SHORT_ID_CACHE.get_short_id(info): info.payload for info in infos
            },
            requires_finalization=finalizes,
        )
        return beam_fn_api_pb2.InstructionResponse(
            instruction_id=instruction_id, process_bundle=answer
        )


class _Untimed(statesampler.StateSampler):
    """Knows in which step a thread is, to whom it counts; takes no times, so it has no thread."""

    def start(self) -> None:
        """Begin a bundle in this thread."""
        self.tracked_thread = threading.current_thread()
        statesampler.set_current_tracker(self)
        self.started = True

    def stop(self) -> None:
        """End the bundle."""
        statesampler.set_current_tracker(None)
        self.finished = True


def _of_steps(processor: BundleProcessor) -> list[Any]:
    """Return what the steps of a bundle have counted; a counter of nothing is left out."""
    return [
        cell.to_runner_api_monitoring_info(key.metric_name, step)
        for step, operation in processor.ops.items()
        for key, cell in operation.metrics_container.metrics.items()
        if not (isinstance(cell, CounterCell) and not cell.value)
    ]


def _summed_up(infos: Iterable[Any]) -> list[Any]:
    """Sum up metrics at once, not when somebody reads them."""
    return list(monitoring_infos.consolidate(infos))
