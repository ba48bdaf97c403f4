"""Featurize: sequenced batches in; answers, publications and releases out. Wiring only.

One stateful stage serves all views, keyed by (view, definition, shard, shard count), because every
stage and every state cell has a cost on every engine. A second, small stage joins the parts of
answers, keyed by joiner (`pipelines.stream.joiner_key`); inference and sinks, which come behind it,
run where the joiner runs. The decisions are in `pipelines.stream.operator` and
`pipelines.stream.answer_join`.

The state of a stage has three cells: a head that every bundle rewrites (positions, watermarks), a
bag of log entries since the last snapshot, and the snapshot. Operators have a fourth, a bag of the
rows that wait for the frontier, where these are many (`pipelines.stream.waiting_rows`); few are in
the head. So the cost of a bundle is proportional to its changes. Decoded state is kept in a
process-wide cache (`pipelines.stream.token_cache`).
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.utils.windowed_value import WindowedValue

import tidemill.pipelines.io.coders  # noqa: F401 - Beam takes them from its registry
from tidemill.features.definitions import Project
from tidemill.pipelines.io.epochs import with_epoch
from tidemill.pipelines.io.steps import PassKeyed, step
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.answer_parts import AnswerPart, Part, SavepointPart
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions, make_operator
from tidemill.pipelines.stream.joiner_key import JoinerKey, is_joiner_key
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_figures import OperatorFigures
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.release_line import release_line
from tidemill.pipelines.stream.savepoint_files import SavepointFiles
from tidemill.pipelines.stream.sequence import decode_batches
from tidemill.pipelines.stream.shard_store import ShardStore
from tidemill.pipelines.stream.snapshot_policy import JoinerLog, operator_snapshot_due
from tidemill.pipelines.stream.state_files import (
    read_handoff,
    read_joiner,
    savepoint_folder,
    write_joiner,
)
from tidemill.pipelines.stream.token_cache import TOKEN_BYTES, TokenCache, new_token
from tidemill.pipelines.stream.windowed import windowed
from tidemill.pipelines.stream.wire_format import (
    Published,
    addressed,
    decode_logged_parts,
    decode_part,
    encode_logged_parts,
    encode_unanswered,
    everything,
    pack,
    published,
)
from tidemill.pipelines.telemetry.metrics import WAITING_REQUESTS

ANSWERS: Final = "answers"
PUBLICATIONS: Final = "publications"
RELEASES: Final = "releases"
UNANSWERED: Final = "unanswered"

_OPERATORS: Final = TokenCache(most=1_024)
_JOINERS: Final = TokenCache(most=1_024)


def forget_run(run: str) -> None:
    """Forget the decoded states of a run in this process (`FeaturizeOptions.run`).

    A state that an earlier run of the same name has left is never used, because its token is not
    the engine's; but it would be kept in memory.
    """
    _OPERATORS.forget(run)
    _JOINERS.forget(run)


class _OncePerKey(beam.DoFn):
    """Collects a bundle's elements by key, and processes each key once when the bundle ends."""

    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    LOG = BagStateSpec("log", BytesCoder())
    SNAPSHOT = ReadModifyWriteStateSpec("snapshot", BytesCoder())

    def __init__(self, project: Project, options: FeaturizeOptions) -> None:
        self._project = project
        self._options = options
        self._bundle: dict[str, tuple[tuple[Any, ...], list[bytes]]] = {}

    def start_bundle(self) -> None:
        self._bundle = {}

    def collect(self, element: tuple[str, bytes], *cells: Any) -> None:
        """Collect an element, whose key has these state cells."""
        key, data = element
        if key in self._bundle:
            self._bundle[key][1].append(data)
        else:
            self._bundle[key] = (cells, [data])

    def finish_bundle(self) -> Iterator[Any]:
        bundle, self._bundle = self._bundle, {}
        for key, (cells, elements) in bundle.items():
            yield from self.work(key, elements, *cells)

    @abc.abstractmethod
    def work(self, key: str, elements: list[bytes], *cells: Any) -> Iterator[Any]:
        """Process the bundle's elements of a key; yield the stage's output."""


@beam.typehints.with_input_types(tuple[str, bytes])
@beam.typehints.with_output_types(
    tuple[str, bytes], **{PUBLICATIONS: bytes, RELEASES: tuple[int, str]}
)
class _Operate(_OncePerKey):
    """Runs shard operators; what has the key of a joiner passes through."""

    WAITING = BagStateSpec("waiting", BytesCoder())

    def process(
        self,
        element: tuple[str, bytes],
        head: Any = beam.DoFn.StateParam(_OncePerKey.HEAD),
        log: Any = beam.DoFn.StateParam(_OncePerKey.LOG),
        snapshot: Any = beam.DoFn.StateParam(_OncePerKey.SNAPSHOT),
        waiting: Any = beam.DoFn.StateParam(WAITING),
    ) -> Iterator[tuple[str, bytes]]:
        if is_joiner_key(element[0]):
            yield element
        else:
            self.collect(element, head, log, snapshot, waiting)

    def setup(self) -> None:
        self._figures = OperatorFigures(self._options.figures.here())
        place = self._options.store
        self._store: ShardStore | None = None if place is None else place.open()

    def teardown(self) -> None:
        if self._store is not None:
            self._store.close()

    def start_bundle(self) -> None:
        super().start_bundle()
        self._operators: dict[tuple[str, int], ShardOperator] = {}
        self._published: list[Published] = []

    def finish_bundle(self) -> Iterator[Any]:
        out = list(super().finish_bundle())
        operators, releases = self._operators, self._published
        self._operators, self._published = {}, []
        if self._store is not None:
            # The state that mends a store which has lost writes is at hand here, and only here.
            self._store.write(releases, lambda *place: everything(operators[place]))
        yield from out

    def work(self, key: str, elements: list[bytes], *cells: Any) -> Iterator[Any]:
        head, log, snapshot, waiting = cells
        operator, logged, files = self._load(key, *cells)
        schema = operator.event_schema
        out: list[Any] = []
        with self._figures.of(operator):
            releases = operator.receive(
                batch for data in elements for batch in decode_batches(data, schema)
            )
            self._emit(operator, releases, out)
            self._note(operator, files, releases)
            while operator.at_savepoint:
                if self._options.stream is not None:
                    out += self._keep(operator, files, self._options.stream)
                operator.pass_savepoint()
                more = operator.receive(())
                self._emit(operator, more, out)
                self._note(operator, files, more)
                releases += more
        logged += sum(release.events for release in releases)
        entries = [release.entry for release in releases if release.entry is not None]
        is_due = bool(entries) and operator_snapshot_due(logged, *operator.sizes)
        if is_due or operator.is_whole_due:
            log.clear()
            snapshot.write(operator.snapshot())
            operator.written_whole()
            logged = 0
        else:
            for entry in entries:
                log.add(entry)
        operator.drop_forgets(operator.number if files.base_at is None else files.base_at)
        change = operator.log_waiting()
        if change.clears:
            waiting.clear()
        if change.entry is not None:
            waiting.add(change.entry)
        token = new_token()
        head.write(token + operator.logged_head())
        _OPERATORS.put((self._options.run, key), token, (operator, logged, files))
        yield from out

    @staticmethod
    def _note(operator: ShardOperator, files: SavepointFiles, releases: list[Release]) -> None:
        """Note releases for the next savepoint, which is whole if they do not say all."""
        files.add(releases)
        if operator.is_whole_due:
            files.begin_anew()

    def _keep(
        self, operator: ShardOperator, files: SavepointFiles, stream: Path
    ) -> Iterator[WindowedValue]:
        """Write the state of an operator that has taken all rows before a savepoint."""
        files.keep(savepoint_folder(stream, self._options.segment + operator.epoch), operator)
        key, groups = operator.key, operator.waiting_groups()
        part = SavepointPart(key.view, key.shard, operator.number, groups, operator.epoch)
        return self._addressed(part, key.text, operator.state.frontier_us)

    def _addressed(
        self, part: AnswerPart | SavepointPart, key: str, time_us: int
    ) -> Iterator[WindowedValue]:
        """Return the elements for all joiners that a part of an operator gives."""
        found = addressed(part, key, self._options.joiners)
        return (windowed(element, time_us) for element in found)

    def _load(
        self, key: str, head: Any, log: Any, snapshot: Any, waiting: Any
    ) -> tuple[ShardOperator, int, SavepointFiles]:
        stored = head.read()
        if stored is not None:
            found = _OPERATORS.take((self._options.run, key), stored[:TOKEN_BYTES])
            if found is not None:
                return found  # type: ignore[no-any-return]
        operator = make_operator(self._project, key, self._options)
        if stored is not None:
            logged = operator.restore(
                stored[TOKEN_BYTES:], snapshot.read(), log.read(), waiting.read
            )
            operator.attempt = self._next_attempt(operator.attempt)
            return operator, logged, SavepointFiles(self._options.states)
        begun = None
        if self._options.handoff is not None:
            begun = read_handoff(self._options.handoff, operator, self._options.states)
        operator.attempt = self._next_attempt(0)
        if self._options.handoff is not None:
            # From now on only the engine's state counts, so write the complete state there.
            snapshot.write(operator.snapshot())
            operator.written_whole()
        return operator, 0, SavepointFiles.after(begun, self._options.states)

    @staticmethod
    def _next_attempt(before: int) -> int:
        """Return the attempt number of an operator that is made now.

        One that was made earlier may still run elsewhere, without the engine knowing it; the store
        refuses its lower number. It is no count: an engine that goes back to an older checkpoint,
        or to none, would count from there once more.
        """
        return max(before, int(time.time()))

    def _emit(self, operator: ShardOperator, releases: list[Release], out: list[Any]) -> None:
        """Add the output of releases."""
        key = operator.key
        self._operators[key.view, key.shard] = operator
        for release in releases:
            at = release.frontier_us
            part = AnswerPart(
                key.view, key.shard, release.number, at, release.answers, release.epoch
            )
            out += self._addressed(part, key.text, at)
            if self._options.publish:
                found = published(operator, release)
                self._published.append(found)
                logged = windowed(pack(found, key.text), at)
                out.append(beam.pvalue.TaggedOutput(PUBLICATIONS, logged))
            line = release.epoch, release_line(operator, release)
            out.append(beam.pvalue.TaggedOutput(RELEASES, windowed(line, at)))


@beam.typehints.with_input_types(tuple[str, bytes])
@beam.typehints.with_output_types(pa.RecordBatch, **{UNANSWERED: bytes})
class _Join(_OncePerKey):
    """Joins the parts of answers."""

    def process(
        self,
        element: tuple[str, bytes],
        head: Any = beam.DoFn.StateParam(_OncePerKey.HEAD),
        log: Any = beam.DoFn.StateParam(_OncePerKey.LOG),
        snapshot: Any = beam.DoFn.StateParam(_OncePerKey.SNAPSHOT),
    ) -> None:
        self.collect(element, head, log, snapshot)

    def work(self, key: str, elements: list[bytes], *cells: Any) -> Iterator[Any]:
        head, log, snapshot = cells
        joiner, logged = self._load(key, head, log, snapshot)
        out = list(self._receive(joiner, elements, self._options.stream))
        entry = encode_logged_parts(logged.entries, elements)
        longer = logged.with_entry(entry)
        if longer.snapshot_due and not joiner.later:
            state = joiner.state()
            log.clear()
            snapshot.write(state)
            logged = JoinerLog.after_snapshot(state)
        else:
            log.add(entry)
            logged = longer
        self._options.figures.here().set(WAITING_REQUESTS, joiner.requests_pending, part=key)
        token = new_token()
        head.write(token)
        _JOINERS.put((self._options.run, key), token, (joiner, logged))
        yield from out

    def _receive(
        self, joiner: AnswerJoiner, elements: Iterable[bytes | pa.Buffer], stream: Path | None
    ) -> Iterator[Any]:
        """Let a joiner take parts; yield the output, and keep its state at savepoints.

        Args:
            joiner: The joiner.
            elements: Encoded parts.
            stream: The folder of the stream; None to keep no state.
        """
        parts: Iterable[Part] = (decode_part(data, self._project) for data in elements)
        time = self._project.request.request_time
        while True:
            answered, unanswered = joiner.receive(parts)
            for batch in answered:
                newest = batch.column(time).cast(pa.int64())[-1].as_py()
                yield windowed(with_epoch(batch, joiner.epoch), newest)
            for lost in unanswered:
                newest = lost.rows.column(time).cast(pa.int64())[-1].as_py()
                data = encode_unanswered(lost)
                yield beam.pvalue.TaggedOutput(UNANSWERED, windowed(data, newest))
            if not joiner.at_savepoint:
                return
            if stream is not None:
                segment = self._options.segment + joiner.epoch
                write_joiner(savepoint_folder(stream, segment), joiner, self._options.states)
            parts = joiner.pass_savepoint()

    def _load(self, key: str, head: Any, log: Any, snapshot: Any) -> tuple[AnswerJoiner, JoinerLog]:
        token = head.read()
        if token is not None:
            found = _JOINERS.take((self._options.run, key), token)
            if found is not None:
                return found  # type: ignore[no-any-return]
        joiner = AnswerJoiner(
            self._project,
            self._options.shards,
            self._options.answer_within_us,
            self._options.gap_batches,
            JoinerKey.parse(key),
            self._options.apart,
        )
        if token is None:
            if self._options.handoff is not None:
                read_joiner(self._options.handoff, joiner, self._options.states)
                # From now on only the engine's state counts, so write the complete state there.
                snapshot.write(joiner.state())
            return joiner, JoinerLog.after_snapshot()
        state = snapshot.read()
        if state is not None:
            joiner.restore(state)
        entries = list(log.read())
        for _, elements in sorted(map(decode_logged_parts, entries), key=itemgetter(0)):
            # Discard the result: these answers were emitted when the entry was written.
            for _ in self._receive(joiner, elements, None):
                pass
        size = sum(len(entry) for entry in entries)
        return joiner, JoinerLog.after_snapshot(state or b"", len(entries), size)


@dataclass(eq=False)
class Featurize(beam.PTransform):
    """Sequenced batches to answers.

    Input: pairs of an operator's key and its encoded sequenced batches; and, with the key
    of their joiner, encoded request parts. Request parts pass through the first stage, because a
    second input of the second stage would need a flatten, which engines run as another stage.
    Output, by name: ``answers`` (answered record batches), ``publications``, ``releases`` (pairs of
    an epoch and a JSON text) and ``unanswered`` (`pipelines.stream.wire_format`). All of them say
    their epoch: how many marks of savepoints the run has sent before what they were made from.
    """

    project: Project
    options: FeaturizeOptions

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, sharded: beam.PCollection) -> dict[str, beam.PCollection]:
        """Wire the two stages."""
        parts = (
            sharded
            # Flink names a stage after its input: a separate input keeps the state on upgrades.
            | step("KeyByOperator", PassKeyed())
            | step("Operate", _Operate(self.project, self.options)).with_outputs(
                PUBLICATIONS, RELEASES, main=ANSWERS
            )
        )
        joined = (
            parts[ANSWERS]
            | step("KeyAnswers", PassKeyed())
            | step("Join", _Join(self.project, self.options)).with_outputs(UNANSWERED, main=ANSWERS)
        )
        return {
            ANSWERS: joined[ANSWERS],
            UNANSWERED: joined[UNANSWERED],
            PUBLICATIONS: parts[PUBLICATIONS],
            RELEASES: parts[RELEASES],
        }
