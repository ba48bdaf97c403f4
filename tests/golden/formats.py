"""Every persistent format: how to read a file of it, and its content as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.support.streaming_project import PARTITIONS, PROJECT
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.dedupe import FORGET_FROM
from tidemill.features.kernel.encoding import decode
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.ingest.build_topics import read_topics
from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.output_parts import read_part
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_state import Head, decode_release, decode_snapshot
from tidemill.pipelines.stream.sequence import SequencedBatch, decode_batches
from tidemill.pipelines.stream.state_files import read_entries, read_handoff, read_joiner
from tidemill.pipelines.stream.waiting_rows import WaitingRows
from tidemill.pipelines.stream.wire_format import (
    decode_logged_parts,
    decode_part,
    decode_unanswered,
    unpack_publications,
)
from tidemill.serving.generations.current import read_current

SHARDS = 2
VIEW = 0
SHARD = 1
OPERATOR_FILE = "cab-00001-of-00002.state"
OUTPUT_PART = "outputs.part"
OUTPUT_FILE = "outputs/00001-all.parquet"
PIECE_FILE = "cab-00001-of-00002.since-000000000008.state"
JOINER_FILE = "answers.state"
LOG_FILE = "log/trips/00000.arrow"


def operator_of(view: int = VIEW, shard: int = SHARD) -> ShardOperator:
    options = FeaturizeOptions(run="golden", shards=SHARDS, partitions=PARTITIONS)
    return make_operator(PROJECT, operator_key(PROJECT, view, shard, SHARDS), options)


def joiner() -> AnswerJoiner:
    return AnswerJoiner(PROJECT, SHARDS, answer_within_us=10**15)


def as_json(value: Any) -> Any:
    """Return the complete content of a value as JSON."""
    if isinstance(value, pa.RecordBatch):
        return [as_json(row) for row in value.to_pylist()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable):
        return [as_json(entry) for entry in value]
    return str(value)


def _state(state: State) -> Any:
    everything = advance(state, None, None, state.frontier_us, Publish.ALL).publications
    return {
        "frontier_us": state.frontier_us,
        "counters": as_json(state.counters),
        "everything": as_json(everything),
    }


def _operator(operator: ShardOperator) -> Any:
    return {
        "key": operator.key.text,
        "positions": operator.expected,
        "watermarks": operator.watermarks,
        "held": [[poll, as_json(held.values())] for poll, held in sorted(operator.held.items())],
        "events": as_json(_batches_of(operator.events)),
        "requests": as_json(_batches_of(operator.requests)),
        "number": operator.number,
        "mark": operator.mark.hex(),
        "attempt": operator.attempt,
        "is_answered": operator.is_answered,
        "counters": as_json(operator.counters),
        "remembered": len(operator.rows_seen),
        "state": _state(operator.state),
    }


def _batches_of(waiting: WaitingRows) -> list[pa.RecordBatch]:
    return [] if waiting.rows is None else [waiting.rows]


def _snapshot(data: bytes) -> Any:
    operator = operator_of()
    state, remembered = decode_snapshot(data, operator.key, operator.plan)
    entries = sorted(zip(*map(as_json, remembered.entries()), strict=True))
    return {"state": _state(state), "remembered": as_json(entries)}


def _joiner(read: AnswerJoiner) -> Any:
    names = ("pending", "early", "closed", "waiting", "frontiers", "numbers")
    said = {name: as_json(getattr(read, name)) for name in names}
    return said | {"stops": as_json(read.savepoints)}


def _logged_poll(data: bytes) -> Any:
    logged = LoggedPoll.decode(data, "a logged poll")
    found = as_json(dataclasses.replace(logged, poll=b""))
    for name in ("lost", "topic_ids"):
        # Polls have them since lost messages can be accepted.
        if not found[name]:
            del found[name]
    return found | {"poll": as_json(Poll.decode(bytes(logged.poll)))}


def _operator_file(path: Path) -> Any:
    operator = operator_of()
    read_handoff(path.parent, operator)
    return _operator(operator)


def _entries(path: Path) -> Any:
    return [_release(bytes(entry)) for entry in read_entries(path)]


def _outputs(path: Path) -> Any:
    return [
        [output.name, as_json(output.rows)]
        for appended in read_part(path)
        for output in appended.outputs()
    ]


def _joined_outputs(path: Path) -> Any:
    found = OutputFolder(path.parent).read()
    assert found is not None
    return as_json(found.combine_chunks().to_batches()[0])


def _joiner_file(path: Path) -> Any:
    read = joiner()
    read_joiner(path.parent, read)
    return _joiner(read)


def _head(data: bytes) -> Any:
    operator = operator_of()
    found = as_json(Head.decode(data, operator.key, operator.event_schema))
    # Files of before have not forgotten anything.
    assert (found.pop("forgets"), found.pop("forget_at")) == ([], FORGET_FROM)
    # Heads of before have all rows that wait, and do not say when the frontier moved.
    return {name: value for name, value in found.items() if (name, value) != ("moved", None)}


def _release(data: bytes) -> Any:
    operator = operator_of()
    return as_json(decode_release(data, operator.key, operator.event_schema))


def _batches(data: bytes) -> Iterator[SequencedBatch]:
    return decode_batches(data, operator_of().event_schema)


def _part(data: bytes) -> Any:
    return decode_part(data, PROJECT)


def _logged_parts(data: bytes) -> Any:
    number, parts = decode_logged_parts(data)
    return [number, [decode_part(part, PROJECT) for part in parts]]


def _log(path: Path) -> Any:
    """Read a partition of a log, and the prefix digest of each number of its rows."""
    folder, source = path.parent.parent.parent, path.parent.name
    log, partition = Log(folder), int(path.stem)
    digests = log.digests(source, partition)
    others = [0] * (log.partitions(source) - 1)
    return {
        "rows": as_json(log.read(source, partition).to_batches()),
        "blocks": as_json(digests.blocks),
        "prefixes": [
            log.prefix_digest(source, [*others[:partition], stop, *others[partition:]])
            for stop in range(digests.rows + 1)
        ],
    }


def _current(path: Path) -> Any:
    named = as_json(read_current(path.parent))
    del named["root"]
    return named


def _topics(found: Mapping[str, Any]) -> Any:
    topics = {name: as_json(topic) for name, topic in found.items()}
    for topic in topics.values():
        # Topics have ids since lost messages can be accepted; those before have none.
        if not topic["id"]:
            del topic["id"]
    return topics


def _of_bytes(read: Callable[[bytes], Any]) -> Callable[[Path], Any]:
    return lambda path: as_json(read(path.read_bytes()))


FORMATS: dict[str, Callable[[Path], Any]] = {
    "kernel_state.bin": _of_bytes(lambda data: _state(decode(data, operator_of().plan))),
    "operator_head.bin": _of_bytes(_head),
    "operator_snapshot.bin": _of_bytes(_snapshot),
    "logged_release.bin": _of_bytes(_release),
    "logged_parts.bin": _of_bytes(_logged_parts),
    "poll.bin": _of_bytes(Poll.decode),
    "batches.bin": _of_bytes(_batches),
    "request_part.bin": _of_bytes(_part),
    "answer_part.bin": _of_bytes(_part),
    "stop_part.bin": _of_bytes(_part),
    "published.bin": _of_bytes(lambda data: unpack_publications(data, PROJECT)),
    "unanswered.bin": _of_bytes(decode_unanswered),
    OPERATOR_FILE: _operator_file,
    JOINER_FILE: _joiner_file,
    "handoff.json": lambda path: as_json(read_record(path.parent)),
    "stream.json": lambda path: as_json(StreamRun.read(path.parent)),
    "build.json": lambda path: as_json(BuildManifest.read(path.parent)),
    "CURRENT": _current,
    LOG_FILE: _log,
    "releases/release.jsonl": lambda path: json.loads(path.read_text()),
    "logged_poll.bin": _of_bytes(_logged_poll),
    "topics.json": lambda path: _topics(read_topics(path.parent)),
    "live/topics.json": lambda path: _topics(LiveLog(path.parent, PROJECT).topics()),
    "live/sealed.json": lambda path: as_json(LiveLog(path.parent, PROJECT).sealed()),
    "marked_poll.bin": _of_bytes(Poll.decode),
    "marked_batches.bin": _of_bytes(_batches),
    f"stops/{OPERATOR_FILE}": _operator_file,
    f"stops/{PIECE_FILE}": _entries,
    OUTPUT_PART: _outputs,
    OUTPUT_FILE: _joined_outputs,
}
"""File name to the function that reads it."""

FORMER = ("handoff.json", "stream.json")
"""Files in ``frames_1`` of a version that is no longer read."""
SINCE_FRAMES_2 = ("build.json", "CURRENT", LOG_FILE)
"""Files that ``frames_1`` does not have."""
SINCE_FRAMES_5 = ("logged_poll.bin", "topics.json", "live/topics.json", "live/sealed.json")
"""Files that the folders before ``frames_5`` do not have."""
SINCE_FRAMES_6 = (
    "marked_poll.bin", "marked_batches.bin", f"stops/{OPERATOR_FILE}", f"stops/{PIECE_FILE}"
)  # fmt: skip
"""Files that the folders before ``frames_6`` do not have."""
SINCE_FRAMES_7 = (OUTPUT_PART, OUTPUT_FILE)
"""Files that the folders before ``frames_7`` do not have."""


def described(folder: Path) -> str:
    """Return the content of all files of a folder as JSON."""
    found = {name: read(folder / name) for name, read in FORMATS.items()}
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
