"""The options of operators, their Beam keys, and how to make an empty operator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tidemill.features.definitions import Project
from tidemill.features.kernel.advance import Publish
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import Inputs, Mode, OperatorKey
from tidemill.pipelines.stream.shard_store import ShardStorePlace
from tidemill.pipelines.stream.state_places import StatePlace, state_place
from tidemill.pipelines.telemetry.stage_figures import NO_FIGURES, FiguresPlace


@dataclass(frozen=True)
class FeaturizeOptions:
    """How the operators run.

    Attributes:
        run: The run's name; the process-wide caches are keyed by it.
        shards: The number of shards of each view.
        partitions: The number of partitions of each source, including the request.
        mode: ``exact`` or ``eager``.
        publish: Whether to publish.
        changes: Whether to publish every change point, for the offline log, or only the newest.
        gap_batches: How many batches, or releases, may wait behind a gap.
        answer_within_us: How far a frontier may pass an unanswered request.
        handoff: The folder of handed-over states; None to start empty.
        stream: The folder of the stream, whose savepoints the states are written to; None if the
            stream has none.
        segment: The number of the run's first segment (`pipelines.stream.state_files`).
        figures: Where the stages report what they do.
        joiners: The number of joiners (`pipelines.stream.joiner_key`).
        apart: Whether a request is answered when it can be (`pipelines.stream.answer_join`).
        store: Where the operators publish, in their bundles; None if they write to no store.
        exchange: Where the workers meet the program, if they do not share its disk.
    """

    run: str
    shards: int
    partitions: dict[str, int]
    mode: Mode = Mode.EXACT
    publish: bool = True
    changes: bool = False
    gap_batches: int = 1_000
    answer_within_us: int = 300_000_000
    handoff: Path | None = None
    stream: Path | None = None
    segment: int = 0
    figures: FiguresPlace = NO_FIGURES
    joiners: int = 1
    apart: bool = True
    store: ShardStorePlace | None = None
    exchange: ExchangePlace | None = None

    @property
    def states(self) -> StatePlace:
        """Where the folders of states are."""
        return state_place(self.exchange)


def operator_key(project: Project, view: int, shard: int, shards: int) -> str:
    """Return the Beam key of an operator."""
    definition = project.views[view]
    return OperatorKey(definition.name, definition.hash, shard, shards).text


def make_operator(project: Project, key: str, options: FeaturizeOptions) -> ShardOperator:
    """Make the empty operator of a Beam key."""
    parsed = OperatorKey.parse(key)
    view = project.view(parsed.view)
    stream = view.stream
    published = Publish.NOTHING
    if options.publish:
        published = Publish.EVERY if options.changes else Publish.NEWEST
    return ShardOperator(
        key=parsed,
        plan=make_plan(view),
        inputs=Inputs(
            event_partitions=options.partitions[stream.name],
            request_partitions=options.partitions[project.request.name],
            lateness_us=stream.lateness_us,
        ),
        mode=options.mode,
        publish=published,
        gap_batches=options.gap_batches,
    )
