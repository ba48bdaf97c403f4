"""Featurize: sequenced batches in; answers, publications and releases out. Wiring only.

One stateful stage serves all views, keyed by (view, definition, shard, shard count), because every
stage and every state cell costs on every engine. A second, small one joins the parts of answers.
What they decide stands in `pipelines.stream.operator` and `pipelines.stream.answer_join`, as plain
objects.

State of the first stage: a head that changes with every bundle (positions, watermarks, what
waits), a bag of releases since the last snapshot, and the snapshot; so a bundle's cost is in
proportion to what it changed. Decoded operators are kept in a process-wide cache under a token
protocol: a random token stands in the head; an operator is *taken out* of the cache to be used,
is right only if its token is the head's, and goes back with a new token. Anything else (a retried
bundle, another worker, a restart) rebuilds from state.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from tidemill.features.definitions import Project
from tidemill.features.kernel.advance import Publish
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.answer_parts import AnswerPart, Part, SavepointPart
from tidemill.pipelines.stream.lost_writes import LOST_WRITES
from tidemill.pipelines.stream.operator import Release, ShardOperator
from tidemill.pipelines.stream.operator_key import Inputs, Mode, OperatorKey
from tidemill.pipelines.stream.sequence import decode_batches
from tidemill.pipelines.stream.state_files import (
    read_handoff,
    read_joiner,
    write_handoff,
    write_joiner,
)
from tidemill.pipelines.stream.wire_format import (
    decode_logged_parts,
    decode_part,
    encode_logged_parts,
    encode_part,
    encode_unanswered,
    pack_everything,
    pack_publications,
)

ANSWERS: Final = "answers"
PUBLICATIONS: Final = "publications"
RELEASES: Final = "releases"
UNANSWERED: Final = "unanswered"
RELEASE_VERSION: Final = 1
"""The version of the JSON that says what a release did; what has none is of version 1 too."""
ALL_REQUESTS: Final = "requests"
"""The key of the joining stage: one, since what waits there is little."""

_SNAPSHOT_EVENTS: Final = 50_000
_SNAPSHOT_TILES: Final = 4
"""A snapshot is written once the log has more events than both allow: its cost, which is that of
the whole state, is then small beside theirs, and so is replaying the log after a restart."""
_JOINER_LOG_BYTES: Final = 4 * 2**20
"""The joining stage logs what came until that is more than this and twice the last snapshot."""
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
        changes: Publish every change point, for the offline log, and not only the newest.
        gap_batches: How many batches, or releases, may wait behind a gap.
        answer_within_us: How far a view may go past a request without answering it.
        handoff: A folder of handed-over states, or None to start empty.
        savepoint: The folder of states that is written when the mark of a savepoint comes, or None
            where the stream runs to its end.
        overtaken: By (view, shard): the frontier that the online store shows already, where a run
            that was killed has published past the handed-over state.
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
    savepoint: Path | None = None
    overtaken: Mapping[tuple[str, int], int] = field(default_factory=dict)


def operator_key(project: Project, view: int, shard: int, shards: int) -> str:
    """Return the Beam key of an operator."""
    definition = project.views[view]
    return OperatorKey(definition.name, definition.hash, shard, shards).text


def make_operator(project: Project, key: str, options: FeaturizeOptions) -> ShardOperator:
    """Make the empty operator of a Beam key."""
    parsed = OperatorKey.parse(key)
    view = project.view(parsed.view)
    stream = view.stream
    return ShardOperator(
        key=parsed,
        plan=make_plan(view),
        inputs=Inputs(
            event_partitions=options.partitions[stream.name],
            request_partitions=options.partitions[project.request.name],
            lateness_us=stream.tolerance_us - stream.out_of_orderness_us,
        ),
        mode=options.mode,
        publish=_published(options),
        gap_batches=options.gap_batches,
    )


def _published(options: FeaturizeOptions) -> Publish:
    if not options.publish:
        return Publish.NOTHING
    return Publish.EVERY if options.changes else Publish.NEWEST


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


class _OncePerKey(beam.DoFn):
    """Collects a bundle's elements by key in ``process``, works once per key when it ends.

    Attributes:
        PASSES: A key whose elements are only passed on.
    """

    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    LOG = BagStateSpec("log", BytesCoder())
    SNAPSHOT = ReadModifyWriteStateSpec("snapshot", BytesCoder())
    PASSES: str | None = None

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
    ) -> Iterator[tuple[str, bytes]]:
        key, data = element
        if key == self.PASSES:
            yield element
        elif key in self._bundle:
            self._bundle[key][3].append(data)
        else:
            self._bundle[key] = (head, log, snapshot, [data])

    def finish_bundle(self) -> Iterator[Any]:
        bundle, self._bundle = self._bundle, {}
        for key, (head, log, snapshot, elements) in bundle.items():
            yield from self.work(key, elements, head, log, snapshot)

    @abc.abstractmethod
    def work(
        self, key: str, elements: list[bytes], head: Any, log: Any, snapshot: Any
    ) -> Iterator[Any]:
        """Take what a bundle brought for a key; give what the stage puts out."""


@beam.typehints.with_input_types(tuple[str, bytes])
@beam.typehints.with_output_types(tuple[str, bytes], **{PUBLICATIONS: bytes, RELEASES: str})
class _Operate(_OncePerKey):
    """Runs shard operators."""

    PASSES = ALL_REQUESTS

    def work(
        self, key: str, elements: list[bytes], head: Any, log: Any, snapshot: Any
    ) -> Iterator[Any]:
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
        if self._options.savepoint is not None and operator.at_savepoint:
            yield self._keep(operator, self._options.savepoint)

    def _keep(self, operator: ShardOperator, folder: Path) -> WindowedValue:
        """Keep the state of an operator that has taken everything before a savepoint."""
        write_handoff(folder, operator)
        key = operator.key
        part = SavepointPart(
            self._view(operator), key.shard, operator.number, operator.waiting_groups()
        )
        return _windowed((ALL_REQUESTS, encode_part(part, key.text)), operator.state.frontier_us)

    def _view(self, operator: ShardOperator) -> int:
        return [view.name for view in self._project.views].index(operator.key.view)

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
        view = self._view(operator)
        part = AnswerPart(view, key.shard, release.number, release.frontier_us, release.answers)
        yield _windowed((ALL_REQUESTS, encode_part(part, key.text)), release.frontier_us)
        if self._options.publish:
            packed = [pack_publications(view, key.shard, release, key.text)]
            shown = self._options.overtaken.get((key.view, key.shard))
            has_hole = LOST_WRITES.operates(self._options.run, key.view, key.shard)
            if has_hole or (shown is not None and _passes(release, shown)):
                caught_up = shown is not None and shown <= release.frontier_us
                packed.append(pack_everything(view, operator, shown if caught_up else None))
            for data in packed:
                yield beam.pvalue.TaggedOutput(PUBLICATIONS, _windowed(data, release.frontier_us))
        yield beam.pvalue.TaggedOutput(
            RELEASES, _windowed(release_line(operator, release), release.frontier_us)
        )


def release_line(operator: ShardOperator, release: Release) -> str:
    """Write the evidence of a release: JSON in one line."""
    evidence = {
        "version": RELEASE_VERSION,
        "view": operator.key.view,
        "shard": operator.key.shard,
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
    return json.dumps(evidence)


class _Logged(NamedTuple):
    """What the joining stage's log holds since the last snapshot.

    Attributes:
        entries: How many bundles.
        size: Their bytes.
        most: At how many bytes the next snapshot is due.
    """

    entries: int
    size: int
    most: int


@beam.typehints.with_input_types(tuple[str, bytes])
@beam.typehints.with_output_types(pa.RecordBatch, **{UNANSWERED: bytes})
class _Join(_OncePerKey):
    """Joins the parts of answers."""

    def work(
        self, key: str, elements: list[bytes], head: Any, log: Any, snapshot: Any
    ) -> Iterator[Any]:
        joiner, logged = self._load(key, head, log, snapshot)
        answered, unanswered = joiner.receive(self._parts(elements))
        entry = encode_logged_parts(logged.entries, elements)
        if logged.size + len(entry) > logged.most:
            state = joiner.state()
            log.clear()
            snapshot.write(state)
            logged = _Logged(0, 0, max(_JOINER_LOG_BYTES, 2 * len(state)))
        else:
            log.add(entry)
            logged = _Logged(logged.entries + 1, logged.size + len(entry), logged.most)
        if self._options.savepoint is not None and joiner.at_savepoint:
            write_joiner(self._options.savepoint, joiner)
        token = os.urandom(_TOKEN_BYTES)
        head.write(token)
        _JOINERS.put((self._options.run, key), token, (joiner, logged))
        time = self._project.request.request_time
        for batch in answered:
            newest = batch.column(time).cast(pa.int64())[-1].as_py()
            yield _windowed(batch, newest)
        for lost in unanswered:
            newest = lost.rows.column(time).cast(pa.int64())[-1].as_py()
            yield beam.pvalue.TaggedOutput(UNANSWERED, _windowed(encode_unanswered(lost), newest))

    def _parts(self, elements: Iterable[bytes | pa.Buffer]) -> Iterator[Part]:
        return (decode_part(data, self._project) for data in elements)

    def _load(self, key: str, head: Any, log: Any, snapshot: Any) -> tuple[AnswerJoiner, _Logged]:
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
        )
        if token is None:
            if self._options.handoff is not None:
                read_joiner(self._options.handoff, joiner)
                # From here on the engine's state is the truth, so it must hold the whole of it.
                snapshot.write(joiner.state())
            return joiner, _Logged(0, 0, _JOINER_LOG_BYTES)
        state = snapshot.read()
        if state is not None:
            joiner.restore(state)
        entries = list(log.read())
        for _, elements in sorted(map(decode_logged_parts, entries), key=itemgetter(0)):
            # What it answered was given out when the entry was written.
            joiner.receive(self._parts(elements))
        size = sum(len(entry) for entry in entries)
        most = max(_JOINER_LOG_BYTES, 2 * len(state or b""))
        return joiner, _Logged(len(entries), size, most)


def _passes(release: Release, shown_us: int) -> bool:
    """Tell whether a release is the one that reaches what the online store shows already."""
    since = release.since_us
    return (since is None or since < shown_us) and shown_us <= release.frontier_us


@dataclass(eq=False)
class Featurize(beam.PTransform):
    """Sequenced batches to answers.

    Input: pairs of an operator's key and the bytes of its sequenced batches; and, at the key
    `ALL_REQUESTS`, encoded request parts. These only pass through the first stage: two inputs of
    the second would cost a flatten, which engines run as a stage of its own between them.
    Output, by name: ``answers`` (answered record batches), ``publications``, ``releases`` (JSON
    texts) and ``unanswered`` (`pipelines.stream.wire_format`).
    """

    project: Project
    options: FeaturizeOptions

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, sharded: beam.PCollection) -> dict[str, beam.PCollection]:
        """Wire the two stages."""
        parts = (
            sharded
            # Flink names a stage by its input: an input of its own keeps state across upgrades.
            | "KeyByOperator" >> beam.Map(_same).with_output_types(tuple[str, bytes])
            | "Operate"
            >> beam.ParDo(_Operate(self.project, self.options)).with_outputs(
                PUBLICATIONS, RELEASES, main=ANSWERS
            )
        )
        joined = (
            parts[ANSWERS]
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
