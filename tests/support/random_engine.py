"""A small engine that cuts, repeats, reorders and recovers at random, as an engine may.

It runs the stages of the stream themselves (`Validate` to the sinks) over polls. State is kept as
bytes by key, as in an engine. A bundle holds any waiting elements, in any order and some of them
twice. Now and then a bundle fails after its output was written, so that its elements come again in
other bundles; the process loses its decoded states; or the engine goes back to an older checkpoint,
with everything since then written already.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import Validate
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.write_outputs import WriteOutputs
from tidemill.pipelines.publish.log_publications import LogPublications
from tidemill.pipelines.publish.publish import PublishToStore
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.resume import Start
from tidemill.pipelines.recovery.write_releases import WriteReleases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.featurize import (
    PUBLICATIONS,
    RELEASES,
    _Join,
    _Operate,
    forget_run,
)
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream.infer import Infer
from tidemill.pipelines.stream.scored_by import ScoredBy
from tidemill.pipelines.stream.shard import Shard


class Cell:
    """A state cell: one value, or a bag whose order means nothing."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def read(self) -> Any:
        return self.values[-1] if self.values else None

    def write(self, value: bytes) -> None:
        self.values = [value]

    def clear(self) -> None:
        self.values = []


class Bag(Cell):
    """A bag: it gives its values in any order."""

    def read(self) -> Any:
        return sorted(self.values)

    def add(self, value: bytes) -> None:
        self.values.append(value)


@dataclass
class Stage:
    """A stateful stage: its function, its waiting elements and its state by key."""

    function: Any
    waiting: list[tuple[str, bytes]] = field(default_factory=list)
    cells: dict[str, tuple[Cell, ...]] = field(default_factory=dict)

    def bundle(self, elements: Sequence[tuple[str, bytes]]) -> Iterator[Any]:
        """Process a bundle; yields its output without windows."""
        self.function.start_bundle()
        # Those of an operator and of a joiner; a joiner has no bag of waiting rows.
        count = len(inspect.signature(self.function.process).parameters) - 1
        for element in elements:
            cells = (Cell(), Bag(), Cell(), Bag())[:count]
            cells = self.cells.setdefault(element[0], cells)
            yield from map(_plain, self.function.process(element, *cells) or ())
        yield from map(_plain, self.function.finish_bundle())


def _plain(value: Any) -> Any:
    if isinstance(value, TaggedOutput):
        return TaggedOutput(value.tag, _plain(value.value))
    return value.value if isinstance(value, WindowedValue) else value


def _bundle(sink: Any, elements: Iterable[Any]) -> None:
    """Let a sink take a bundle."""
    sink.start_bundle()
    for element in elements:
        list(sink.process(element) or ())
    sink.finish_bundle()


class RandomEngine:
    """Runs the stream of a root over polls.

    Args:
        config: The configuration; the project is registered.
        start: The start of the segment.
        fills: The fills that it publishes to.
        options: The options of the operators.
        chance: Decides everything; None for an orderly engine with one poll in each bundle.
    """

    def __init__(
        self,
        config: Configuration,
        start: Start,
        fills: RunFills,
        options: FeaturizeOptions,
        chance: random.Random | None,
    ) -> None:
        project, root = config.project, start.current.stream_folder
        self._chance = chance
        self._run = options.run
        self._validate, self._shard = (
            Validate(project),
            Shard(project, config.shards, options.joiners),
        )
        self._shard.setup()
        options = replace(options, store=PublishToStore(project, config.online_store, fills))
        self._operate, join = _Operate(project, options), _Join(project, options)
        operate = self._operate
        operate.setup()
        join.setup()
        self._stages = [Stage(operate), Stage(join)]
        self._infer = Infer(project, (ScoredBy(Path("bundle"), ()),))
        self._infer.setup()
        segment = start.segment
        self._log = LogPublications(
            project,
            root,
            start.current.offline_root,
            config.shards,
            changes=options.changes,
            segment=segment,
        )
        self._releases = WriteReleases(root / paths.RELEASES, segment)
        named_by = ("partition", "position")
        self._predictions = WriteOutputs(root / paths.PREDICTIONS, named_by, segment)
        self._rejected = WriteOutputs(
            root / paths.REJECTED_BY_STREAM, ("stage", "stream", *named_by), segment
        )
        self._sinks = (self._log, self._releases, self._predictions, self._rejected)
        for sink in self._sinks:
            sink.setup()
        self.failures = self.recoveries = 0

    def run(self, polls: Iterable[Poll]) -> None:
        """Run over polls, until nothing waits."""
        operate = self._stages[0]
        for poll in polls:
            for output in self._validate.process(poll):
                if isinstance(output, TaggedOutput):
                    _bundle(self._rejected, [output.value])
                else:
                    operate.waiting += self._shard.process(output)
            if self._chance is None:
                self._drain()
        checkpoint = self._checkpoint()
        while any(stage.waiting for stage in self._stages):
            if self._chance is None:
                self._drain()
                continue
            self._random_bundle(self._chance)
            if self._chance.random() < 0.1:
                forget_run(self._run)
            if self._chance.random() < 0.1:
                checkpoint = self._checkpoint()
            if self.recoveries < 3 and self._chance.random() < 0.04:
                self._restore(checkpoint)
        for sink in (self._operate, *self._sinks):
            sink.teardown()
        forget_run(self._run)

    def _checkpoint(self) -> Any:
        return copy.deepcopy([(stage.waiting, stage.cells) for stage in self._stages])

    def _restore(self, checkpoint: Any) -> None:
        self.recoveries += 1
        forget_run(self._run)
        for stage, (waiting, cells) in zip(self._stages, copy.deepcopy(checkpoint), strict=True):
            stage.waiting, stage.cells = waiting, cells

    def _drain(self) -> None:
        for stage in self._stages:
            elements, stage.waiting = stage.waiting, []
            self._write(stage.bundle(elements))

    def _random_bundle(self, chance: random.Random) -> None:
        stage = chance.choice([stage for stage in self._stages if stage.waiting])
        # Elements overtake each other, but not by far: an operator holds what comes early.
        near = min(len(stage.waiting), 60)
        picked = set(chance.sample(range(near), chance.randint(1, near)))
        elements = [stage.waiting[place] for place in picked]
        chance.shuffle(elements)
        doubled = elements + chance.choices(elements, k=chance.randint(0, 2))
        before, others = copy.deepcopy(stage.cells), [s.waiting for s in self._stages]
        kept = [list(waiting) for waiting in others]
        stage.waiting = [e for place, e in enumerate(stage.waiting) if place not in picked]
        self._write(stage.bundle(doubled))
        if chance.random() < 0.1:
            # The output is written; the state is not.
            self.failures += 1
            stage.cells = before
            for one, waiting in zip(self._stages, kept, strict=True):
                one.waiting = waiting

    def _write(self, outputs: Iterable[Any]) -> None:
        published, releases = [], []
        self._infer.start_bundle()
        for output in outputs:
            if isinstance(output, tuple):
                self._stages[1].waiting.append(output)
            elif not isinstance(output, TaggedOutput):
                self._infer.process(output)
            elif output.tag == PUBLICATIONS:
                published.append(output.value)
            elif output.tag == RELEASES:
                releases.append(output.value)
            else:
                raise AssertionError("a request was given up")
        _bundle(self._log, published)
        _bundle(self._releases, releases)
        _bundle(self._predictions, [one.value for one in self._infer.finish_bundle()])
