"""The steps of a stream, from its source to its outputs. Wiring only.

Every step has a name of its own (`pipelines.io.steps`), which is the same for every project: an
engine that lets a new version of a job go on with the states of the old one pairs steps by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.pipelines.config.sink_section import PREDICTIONS, REJECTED
from tidemill.pipelines.delivery.deliver import Deliver
from tidemill.pipelines.ingest.validate import REJECTED as INVALID
from tidemill.pipelines.ingest.validate import Validate
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.epochs import with_epoch
from tidemill.pipelines.io.exchange.program_end import ProgramEnd
from tidemill.pipelines.io.steps import step
from tidemill.pipelines.io.write_outputs import WriteOutputs
from tidemill.pipelines.publish.log_publications import LogPublications
from tidemill.pipelines.recovery.resume import Start
from tidemill.pipelines.recovery.write_releases import WriteReleases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.featurize import (
    ANSWERS,
    PUBLICATIONS,
    RELEASES,
    UNANSWERED,
    Featurize,
)
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.infer import UNSCORED, Infer
from tidemill.pipelines.stream.rejected_by_stream import PLACE, rejected_requests
from tidemill.pipelines.stream.scored_by import Recorded, ScoredBy
from tidemill.pipelines.stream.shard import Shard
from tidemill.pipelines.stream.wire_format import decode_unanswered
from tidemill.pipelines.telemetry.rejected_figures import CountRejected

_REFUSALS = ("Invalid", "Unanswered", "Unscored", "Unreadable")
"""The records that the stream rejects: by validation, for want of an answer, by the model, and by a
reader."""


class Entrance(Protocol):
    """Where the polls of a stream come from."""

    def read(
        self,
        pipeline: beam.Pipeline,
        attempt: Attempt | None = None,
        exchange: ProgramEnd | None = None,
        *,
        by_impulses: bool = False,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Wire the source; return the polls, and collections of rejected records."""


class Sinks(Protocol):
    """What makes the steps that write outputs."""

    def step(
        self, name: str, write: WriteOutputs, attempt: Attempt | None = None
    ) -> WriteOutputs | Deliver:
        """Return the step that writes outputs of a section of the configuration."""


def wire(
    pipeline: beam.Pipeline,
    project: Project,
    entrance: Entrance,
    featurize: FeaturizeOptions,
    bundles: Sequence[ScoredBy],
    start: Start,
    delivery: Sinks,
    attempt: Attempt | None = None,
    hints: Mapping[str, str] | None = None,
    exchange: ProgramEnd | None = None,
    *,
    by_impulses: bool = False,
    recorded: Recorded | None = None,
) -> None:
    """Wire source, sharding, features, publications, inference and sinks.

    Args:
        pipeline: An empty pipeline.
        project: The project.
        entrance: Where polls come from.
        featurize: How operators and joiners run.
        bundles: The bundles that score; none for a project without a model.
        start: The start of the run.
        delivery: What makes the steps that write outputs.
        attempt: The job's attempt, if its workers are other processes.
        hints: Beam's resource hints for the step that scores, and for no other.
        exchange: The program's end, if workers do not share its disk: the steps that write run
            there then, on what the workers hand over.
        by_impulses: Whether the source is called by impulses (`pipelines.io.poll_source`).
        recorded: Where other bundles are recorded while the stream runs; None if none are.
    """

    def written(name: str, last: Any, *, is_awaited: bool = True) -> Any:
        if exchange is not None:
            last = exchange.step(name, last, is_awaited=is_awaited)
        return step(name, last)

    if exchange is not None:
        attempt = None  # the program writes itself
    root, segment = start.current.stream_folder, start.segment
    polls, refused = entrance.read(pipeline, attempt, exchange, by_impulses=by_impulses)
    valid = polls | step("Validate", Validate(project)).with_outputs(INVALID, main="polls")
    sharded = valid["polls"] | step("Shard", Shard(project, featurize.shards, featurize.joiners))
    out = sharded | "Featurize" >> Featurize(project, featurize)
    scores = Infer(project, tuple(bundles), featurize.figures, featurize.exchange, recorded)
    infer = step("Infer", scores)
    infer = infer.with_resource_hints(**hints or {}).with_outputs(UNSCORED, main=PREDICTIONS)
    scored = out[ANSWERS] | infer
    write = WriteOutputs(root / paths.PREDICTIONS, ("partition", "position"), segment)
    delivered = scored[PREDICTIONS] | written(
        "Predictions", delivery.step(PREDICTIONS, write, attempt)
    )
    # The workers of Beam end a bundle's steps in the order of how many steps follow each. So one
    # more lets predictions go out before publications are logged, and not after.
    _ = delivered | step("Delivered", _Nothing())
    log = LogPublications(
        project,
        root,
        replace(start.current, offline=start.run.offline or 0).offline_root,
        featurize.shards,
        changes=featurize.changes,
        segment=segment,
    )
    _ = out[PUBLICATIONS] | written("LogPublications", log, is_awaited=False)
    releases = WriteReleases(root / paths.RELEASES, segment)
    _ = out[RELEASES] | written("Releases", releases, is_awaited=False)
    unanswered = out[UNANSWERED] | step("Reject", _Reject(project.request.name))
    # Not flattened: FnApiRunner would hold the records back until the source ends.
    found = (valid[INVALID], unanswered, scored[UNSCORED], *refused)
    for name, refusals in zip(_REFUSALS[: len(found)], found, strict=True):
        write = WriteOutputs(root / paths.REJECTED_BY_STREAM, PLACE, segment)
        _ = (
            refusals
            | step(f"Count{name}", CountRejected(featurize.figures))
            | written(f"Write{name}", delivery.step(REJECTED, write, attempt))
        )


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class _Nothing(beam.DoFn):
    """Takes what does not come."""

    def process(self, element: str) -> Iterator[str]:
        yield from ()


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(pa.RecordBatch)
class _Reject(beam.DoFn):
    """Turns given-up requests into rejected records."""

    def __init__(self, request: str) -> None:
        self._request = request

    def process(self, element: bytes) -> Iterator[pa.RecordBatch]:
        lost = decode_unanswered(element)
        yield with_epoch(rejected_requests(self._request, lost), lost.epoch)
