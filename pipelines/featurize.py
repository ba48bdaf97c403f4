"""Featurize: sequenced batches in; answers, publications and releases out. Wiring only.

One stateful stage serves all views, keyed by (view, definition, shard, shard count), because every
stage and every state cell costs on every engine. A second, small one joins the parts of answers.
What they decide stands in `pipelines.operator` and `pipelines.answers`, as plain objects.

State of the first stage: a head that changes with every bundle (positions, watermarks, what
waits), a bag of releases since the last snapshot, and the snapshot; so a bundle's cost is in
proportion to what it changed. Decoded operators are kept in a process-wide cache under a token
protocol: a random token stands in the head; an operator is *taken out* of the cache to be used,
is right only if its token is the head's, and goes back with a new token. Anything else (a retried
bundle, another worker, a restart) rebuilds from state.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from features.definitions import Project
from features.kernel.advance import Publish
from features.kernel.plan import make_plan
from pipelines.answers import AnswerJoiner, AnswerPart, RequestPart, Unanswered
from pipelines.coders import RecordBatchCoder
from pipelines.operator import Inputs, Mode, OperatorKey, Release, ShardOperator
from pipelines.sequence import decode_batches

ANSWERS: Final = "answers"
PUBLICATIONS: Final = "publications"
RELEASES: Final = "releases"
UNANSWERED: Final = "unanswered"
ALL_REQUESTS: Final = "requests"
"""The key of the joining stage: one, since what waits there is little."""

_SNAPSHOT_EVENTS: Final = 50_000
_SNAPSHOT_TILES: Final = 4
"""A snapshot is written once the log has more events than both allow: its cost, which is that of
the whole state, is then small beside theirs, and so is replaying the log after a restart."""
_TOKEN_BYTES: Final = 12


@dataclass(frozen=True)
class FeaturizeOptions:
    """How the operators run.

    Attributes:
        run: Names the run: operators in the process-wide cache belong to one run.
        shards: How many shards each view has.
        partitions: Partitions of each source, the request's too.
        mode: ``exact`` or ``eager``.
        publish: Whether publications are made.
        gap_batches: How many batches, or releases, may wait behind a gap.
        answer_within_us: How far a view may go past a request without answering it.
        handoff: A folder of handed-over states, or None to start empty.
    """

    run: str
    shards: int
    partitions: dict[str, int]
    mode: Mode = Mode.EXACT
    publish: bool = True
    gap_batches: int = 1_000
    answer_within_us: int = 300_000_000
    handoff: Path | None = None


def operator_key(project: Project, view: int, shard: int, shards: int) -> str:
    """Return the Beam key of an operator."""
    definition = project.views[view]
    return f"{definition.name}/{definition.hash}/{shard}/{shards}"


def make_operator(project: Project, key: str, options: FeaturizeOptions) -> ShardOperator:
    """Make the empty operator of a Beam key."""
    name, digest, shard, shards = key.split("/")
    view = project.view(name)
    stream = view.stream
    return ShardOperator(
        key=OperatorKey(name, digest, int(shard), int(shards)),
        plan=make_plan(view),
        inputs=Inputs(
            event_partitions=options.partitions[stream.name],
            request_partitions=options.partitions[project.request.name],
            lateness_us=stream.tolerance_us - stream.out_of_orderness_us,
        ),
        mode=options.mode,
        publish=Publish.NEWEST if options.publish else Publish.NOTHING,
        gap_batches=options.gap_batches,
    )


def state_path(folder: Path, key: OperatorKey) -> Path:
    """Return the file of a handed-over state."""
    return folder / f"{key.view}-{key.shard:05d}-of-{key.shards:05d}.state"


def write_handoff(folder: Path, operator: ShardOperator) -> None:
    """Write an operator's whole state for another run to start from."""
    path = state_path(folder, operator.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(pickle.dumps((operator.head(), operator.snapshot()), protocol=5))
    unfinished.replace(path)


def read_handoff(folder: Path, operator: ShardOperator) -> None:
    """Start an operator from a handed-over state; it publishes every entity once.

    Raises:
        FileNotFoundError: There is no state for its key.
    """
    path = state_path(folder, operator.key)
    if not path.exists():
        raise FileNotFoundError(
            f"{operator.key}: no handed-over state at {path}; run `tidemill backfill`, or start "
            "the stream without a handoff"
        )
    head, snapshot = pickle.loads(path.read_bytes())
    operator.restore(head, snapshot, [])
    operator.publish_all_next = True
    # The releases of a run count from 1; those of the handoff were never seen by anyone.
    operator.number = 0


class _Cache:
    """Decoded operators, least recently used first; see the module's token protocol."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[tuple[str, str], tuple[bytes, Any]] = (
            collections.OrderedDict()
        )

    def take(self, key: tuple[str, str], token: bytes) -> Any | None:
        """Take an entry out; None unless its token is ``token``."""
        with self._lock:
            entry = self._entries.pop(key, None)
        return entry[1] if entry is not None and entry[0] == token else None

    def put(self, key: tuple[str, str], token: bytes, value: Any) -> None:
        """Put an entry back."""
        with self._lock:
            self._entries[key] = (token, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)


_OPERATORS: Final = _Cache(most=1_024)
_JOINERS: Final = _Cache(most=64)


def _windowed(value: Any, time_us: int) -> WindowedValue:
    stamp = Timestamp(micros=min(max(time_us, MIN_TIMESTAMP.micros), MAX_TIMESTAMP.micros))
    return WindowedValue(value, stamp, [GlobalWindow()])


@beam.typehints.with_input_types(tuple[str, bytes])
@beam.typehints.with_output_types(tuple[str, bytes])
class _Operate(beam.DoFn):
    """Runs shard operators; collects in ``process``, works once per key in ``finish_bundle``."""

    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    LOG = BagStateSpec("log", BytesCoder())
    SNAPSHOT = ReadModifyWriteStateSpec("snapshot", BytesCoder())

    def __init__(self, project: Project, options: FeaturizeOptions) -> None:
        self._project = project
        self._options = options
        self._bundle: dict[str, tuple[Any, Any, Any, list[bytes]]] = {}

    def start_bundle(self) -> None:
        self._bundle = {}

    def process(
        self,
        element: tuple[str, bytes],
        head: Any = beam.DoFn.StateParam(HEAD),
        log: Any = beam.DoFn.StateParam(LOG),
        snapshot: Any = beam.DoFn.StateParam(SNAPSHOT),
    ) -> None:
        key, data = element
        if key in self._bundle:
            self._bundle[key][3].append(data)
        else:
            self._bundle[key] = (head, log, snapshot, [data])

    def finish_bundle(self) -> Iterator[Any]:
        bundle, self._bundle = self._bundle, {}
        for key, (head, log, snapshot, elements) in bundle.items():
            operator, logged = self._load(key, head, log, snapshot)
            batches = [
                batch for data in elements for batch in decode_batches(data, operator.event_schema)
            ]
            release, entry = operator.receive(batches)
            if entry is not None and release is not None:
                most = max(_SNAPSHOT_EVENTS, _SNAPSHOT_TILES * operator.state.n_tiles)
                if logged + release.events > most:
                    log.clear()
                    snapshot.write(operator.snapshot())
                    logged = 0
                else:
                    log.add(entry)
                    logged += release.events
            token = os.urandom(_TOKEN_BYTES)
            head.write(token + operator.head())
            _OPERATORS.put((self._options.run, key), token, (operator, logged))
            if release is not None:
                yield from self._emit(operator, release)

    def _load(self, key: str, head: Any, log: Any, snapshot: Any) -> tuple[ShardOperator, int]:
        stored = head.read()
        if stored is not None:
            found = _OPERATORS.take((self._options.run, key), stored[:_TOKEN_BYTES])
            if found is not None:
                return found  # type: ignore[no-any-return]
        operator = make_operator(self._project, key, self._options)
        if stored is not None:
            logged = operator.restore(stored[_TOKEN_BYTES:], snapshot.read(), log.read())
            return operator, logged
        if self._options.handoff is not None:
            read_handoff(self._options.handoff, operator)
            # From here on the engine's state is the truth, so it must hold the whole of it.
            snapshot.write(operator.snapshot())
        return operator, 0

    def _emit(self, operator: ShardOperator, release: Release) -> Iterator[Any]:
        key = operator.key
        view = [v.name for v in self._project.views].index(key.view)
        part = AnswerPart(view, key.shard, release.number, release.frontier_us, release.answers)
        yield _windowed((ALL_REQUESTS, encode_part(part)), release.frontier_us)
        if self._options.publish:
            packed = _pack(view, key.shard, release.frontier_us, release.publications)
            yield beam.pvalue.TaggedOutput(PUBLICATIONS, _windowed(packed, release.frontier_us))
        evidence = {
            "view": key.view,
            "shard": key.shard,
            "number": release.number,
            "frontier_us": release.frontier_us,
            "positions": list(release.positions),
            "events": release.events,
            "answers": release.answers.num_rows,
            "publications": release.publications.num_rows,
            # Since the operator began:
            "seen": dataclasses.asdict(operator.counters),
            "kernel": dataclasses.asdict(operator.state.counters),
        }
        yield beam.pvalue.TaggedOutput(
            RELEASES, _windowed(json.dumps(evidence), release.frontier_us)
        )


@beam.typehints.with_input_types(tuple[str, bytes])
@beam.typehints.with_output_types(pa.RecordBatch)
class _Join(beam.DoFn):
    """Joins the parts of answers; as `_Operate`, works once per bundle."""

    PENDING = ReadModifyWriteStateSpec("pending", BytesCoder())

    def __init__(self, project: Project, options: FeaturizeOptions) -> None:
        self._project = project
        self._options = options
        self._bundle: dict[str, tuple[Any, list[bytes]]] = {}

    def start_bundle(self) -> None:
        self._bundle = {}

    def process(
        self, element: tuple[str, bytes], pending: Any = beam.DoFn.StateParam(PENDING)
    ) -> None:
        key, data = element
        if key in self._bundle:
            self._bundle[key][1].append(data)
        else:
            self._bundle[key] = (pending, [data])

    def finish_bundle(self) -> Iterator[Any]:
        bundle, self._bundle = self._bundle, {}
        for key, (pending, elements) in bundle.items():
            joiner = self._load(key, pending)
            answered, unanswered = joiner.receive(decode_part(data) for data in elements)
            token = os.urandom(_TOKEN_BYTES)
            pending.write(token + joiner.state())
            _JOINERS.put((self._options.run, key), token, joiner)
            time = self._project.request.request_time
            for batch in answered:
                newest = batch.column(time).cast(pa.int64())[-1].as_py()
                yield _windowed(batch, newest)
            for lost in unanswered:
                newest = lost.rows.column(time).cast(pa.int64())[-1].as_py()
                yield beam.pvalue.TaggedOutput(UNANSWERED, _windowed(_plain(lost), newest))

    def _load(self, key: str, pending: Any) -> AnswerJoiner:
        joiner = AnswerJoiner(
            self._project,
            self._options.shards,
            self._options.answer_within_us,
            self._options.gap_batches,
        )
        stored = pending.read()
        if stored is not None:
            found = _JOINERS.take((self._options.run, key), stored[:_TOKEN_BYTES])
            if found is not None:
                return found  # type: ignore[no-any-return]
            joiner.restore(stored[_TOKEN_BYTES:])
        return joiner


def _plain(lost: Unanswered) -> tuple[bytes, int, tuple[str, ...]]:
    return RecordBatchCoder().encode(lost.rows), lost.partition, lost.views


def encode_part(part: RequestPart | AnswerPart) -> bytes:
    """Write a part for the joining stage."""
    coder = RecordBatchCoder()
    if isinstance(part, RequestPart):
        return pickle.dumps((part.group, coder.encode(part.rows)), protocol=5)
    answers = part.answers
    rows = None if answers is None or answers.num_rows == 0 else coder.encode(answers)
    return pickle.dumps((part.view, part.shard, part.number, part.frontier_us, rows), protocol=5)


def decode_part(data: bytes) -> RequestPart | AnswerPart:
    """Read a part."""
    fields = pickle.loads(data)
    coder = RecordBatchCoder()
    if len(fields) == 2:
        return RequestPart(fields[0], coder.decode(fields[1]))
    view, shard, number, frontier, rows = fields
    return AnswerPart(view, shard, number, frontier, None if rows is None else coder.decode(rows))


def _pack(view: int, shard: int, frontier_us: int, rows: pa.RecordBatch) -> bytes:
    return pickle.dumps((view, shard, frontier_us, RecordBatchCoder().encode(rows)), protocol=5)


def unpack_publications(data: bytes) -> tuple[int, int, int, pa.RecordBatch]:
    """Read a published element: view, shard, frontier and kernel publications."""
    view, shard, frontier, rows = pickle.loads(data)
    return view, shard, frontier, RecordBatchCoder().decode(rows)


@dataclass(eq=False)
class Featurize(beam.PTransform):
    """Sequenced batches to answers.

    Input: two collections by name: ``batches``, pairs of an operator's key and the bytes of its
    sequenced batches; and ``requests``, encoded request parts keyed by `ALL_REQUESTS`.
    Output, by name: ``answers`` (answered record batches), ``publications``, ``releases`` (JSON
    texts) and ``unanswered``.
    """

    project: Project
    options: FeaturizeOptions

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pcolls: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
        """Wire the two stages."""
        parts = (
            pcolls["batches"]
            # Flink names a stage by its input: an input of its own keeps state across upgrades.
            | "KeyByOperator" >> beam.Map(_same).with_output_types(tuple[str, bytes])
            | "Operate"
            >> beam.ParDo(_Operate(self.project, self.options)).with_outputs(
                PUBLICATIONS, RELEASES, main=ANSWERS
            )
        )
        joined = (
            (parts[ANSWERS], pcolls["requests"])
            | "Parts" >> beam.Flatten()
            | "KeyAnswers" >> beam.Map(_same).with_output_types(tuple[str, bytes])
            | "Join"
            >> beam.ParDo(_Join(self.project, self.options)).with_outputs(UNANSWERED, main=ANSWERS)
        )
        return {
            ANSWERS: joined[ANSWERS],
            UNANSWERED: joined[UNANSWERED],
            PUBLICATIONS: parts[PUBLICATIONS],
            RELEASES: parts[RELEASES],
        }


def _same(element: tuple[str, bytes]) -> tuple[str, bytes]:
    return element
