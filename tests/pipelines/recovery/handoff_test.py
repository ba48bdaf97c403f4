"""Stop and resume: the segments of a stream together equal a stream that never stopped."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.builds import make_build
from tests.support.folders import build_of, stream_of
from tests.support.proof_run import score_without_models
from tests.support.stream_outputs import outputs_of, rows_in, table_in
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    START,
    Arrived,
    PlainStream,
    arrivals,
    configuration,
    elements_of,
    random_rows,
    write_log,
)
from tidemill.features.contract import MINUTE, SECOND, TIME_MIN
from tidemill.features.errors import InputError, SequenceError, StateMismatch, StateVersionError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io import replay
from tidemill.pipelines.io.log import RECEIVED
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.replay import ReplayLog, ReplayOptions
from tidemill.pipelines.recovery.handoff import (
    last_states,
    read_record,
)
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.paths import HANDOFF, SAVEPOINTS, STATES
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.answer_parts import Part, RequestPart, SavepointPart
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.rejected_by_stream import read_rejected
from tidemill.pipelines.stream.shard import request_parts
from tidemill.pipelines.stream.state_files import read_handoff, savepoint_folder
from tidemill.pipelines.stream.wire_format import decode_part, encode_part
from tidemill.pipelines.stream_run.stream import stream
from tidemill.serving.generations.current import read_current
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.parcels import online_rows
from tidemill.serving.online.rows import KeySpace, Row, online_keys

BEGIN = START + 2 * MINUTE
STOP = START + 11 * MINUTE
SHARDS = 2
CUTS = 10
WALL_CLOCK = ("sent_us", "created_us")


def late_arrivals(seed: int, trips: int = 30, hails: int = 18) -> list[Arrived]:
    """A log with trips and requests behind the frontier, rejected ones, and trips of no cab."""
    chance = random.Random(seed)
    rows = random_rows(seed, trips, hails)
    streamed = [row for row in rows["trips"] if row["at"] >= BEGIN]
    rows["trips"] += [
        {**row, "trip": f"no cab {number}", "cab": None}
        for number, row in enumerate(chance.sample(streamed, 4))
    ]
    rows["trips"] += [
        {**row, "trip": f"no fare {number}", "fare": float("nan")}
        for number, row in enumerate(chance.sample(streamed, 4))
    ]
    out = []
    for part in arrivals(PROJECT, rows, PARTITIONS, chance):
        time = PROJECT.definition(part.source).time_column
        # Within what a source accepts: out-of-orderness and lateness.
        most = {"trips": 40 * SECOND, "rain": 0, "hails": 30 * SECOND}[part.source]
        received = [
            row[time] + chance.randint(0, most) if chance.random() < 0.4 else at
            for row, at in zip(part.rows, part.received_us, strict=True)
        ]
        order = sorted(range(len(received)), key=lambda i: (received[i], i))
        out.append(
            Arrived(
                part.source,
                part.partition,
                [part.rows[i] for i in order],
                [received[i] for i in order],
            )
        )
    return out


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score without a model, which these tests do not need."""
    score_without_models(monkeypatch)


@pytest.fixture
def poll_by_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every poll a bundle, and so a release: late values depend on the releases."""
    monkeypatch.setattr(replay._Read, "moment_s", 0.0)


def made(
    root: Path,
    arrived: list[Arrived],
    mode: str = "exact",
    poll_rows: int = 1,
    publish: bool = False,
) -> Configuration:
    config = configuration(root, PROJECT, BEGIN, STOP, SHARDS, mode=mode, poll_rows=poll_rows)
    make_build(config, arrived, publish=publish)
    return config


def run(config: Configuration, **options: Any) -> dict[str, Any]:
    return stream(config, QuietProgress(), **{"engine": "fnapi", **options})


def random_savepoints(seed: int, count: int = CUTS) -> list[int]:
    chance = random.Random(seed)
    return sorted(chance.randrange(BEGIN, STOP) for _ in range(count))


def in_segments(
    config: Configuration, savepoints: list[int], **options: Any
) -> list[dict[str, Any]]:
    """Run a stream that stops at every savepoint and resumes."""
    out = []
    for number, savepoint in enumerate([*savepoints, None]):
        out.append(run(config, until_us=savepoint, resume=number > 0, **options))
    return out


# The output of a stream.


def predictions(config: Configuration, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    found = table_in(stream_of(config.root) / "predictions").drop_columns([*WALL_CLOCK, *without])
    return found.sort_by([("partition", "ascending"), ("position", "ascending")]).to_pylist()


def rejected(config: Configuration) -> list[str]:
    folder = stream_of(config.root) / "rejected_by_stream"
    return sorted(map(repr, read_rejected(folder).to_pylist()))


def publications_log(config: Configuration) -> dict[str, list[str]]:
    """Every row, with repeats."""
    folder = stream_of(config.root) / "publications"
    return {
        view.name: sorted(map(repr, rows_in(folder / view.name)))
        for view in PROJECT.views
        if (folder / view.name).exists()
    }


def spaces() -> list[tuple[KeySpace, list[bytes]]]:
    """Every key space, with all keys."""
    keys = {
        "cab": pa.array(["a", "b", "ç", ""]),
        "zone": pa.array([1, 2, -3]),
        "weather": pa.array([1, 2]),
    }
    return [
        (
            KeySpace.of(PROJECT.name, view),
            online_keys(view.entity.join_key, keys[view.name]),
        )
        for view in PROJECT.views
    ]


def store(config: Configuration) -> list[tuple[Any, list[Row | None]]]:
    database = open_database(config.online_store)
    snapshots = database.read(spaces())
    database.close()
    return [(dict(one.frontiers.by_shard), one.rows) for one in snapshots]


def state_differences(config: Configuration) -> list[str]:
    """Compare the rows of the store with what the states at the last savepoint publish."""
    folder, _ = last_states(read_current(config.root))
    options = FeaturizeOptions(run="test", shards=SHARDS, partitions=PARTITIONS)
    expected: dict[tuple[int, bytes], Row] = {}
    for view in range(len(PROJECT.views)):
        for shard in range(SHARDS):
            operator = make_operator(PROJECT, operator_key(PROJECT, view, shard, SHARDS), options)
            read_handoff(folder, operator)
            named = named_publications(PROJECT.views[view], operator.everything())
            rows = online_rows(PROJECT.views[view], named, shard).rows()
            expected |= {(view, row.key): row for row in rows}
    found = {
        (view, row.key): row
        for view, (_, rows) in enumerate(store(config))
        for row in rows
        if row is not None
    }
    assert found.keys() == expected.keys()
    return [
        f"{at}: {found[at]} is not {row}"
        for at, row in expected.items()
        # After a killed run the instant from which it is valid may be later.
        if found[at]._replace(event_timestamp=0) != row._replace(event_timestamp=0)
    ]


@dataclass
class Reader:
    """Reads a store repeatedly while a stream writes, and notes values that go back."""

    config: Configuration
    reads: int = 0
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        done = threading.Event()
        reader = threading.Thread(target=self._read, args=(done,))
        reader.start()
        try:
            yield self
        finally:
            done.set()
            reader.join()

    def _read(self, done: threading.Event) -> None:
        newest: dict[Any, Any] = {}
        database = open_database(self.config.online_store)
        wanted = spaces()
        while not done.wait(0.01):
            for (space, keys), snapshot in zip(wanted, database.read(wanted), strict=True):
                seen: dict[Any, Any] = {
                    (space.view, "frontier", shard): frontier
                    for shard, frontier in snapshot.frontiers.by_shard.items()
                }
                for key, row in zip(keys, snapshot.rows, strict=True):
                    if row is not None:
                        seen[space.view, key] = (row.event_timestamp, row.revision)
                for at, value in newest.items():
                    if at[0] == space.view and (at not in seen or seen[at] < value):
                        self.faults.append(f"{at}: {seen.get(at)} after {value}")
                newest |= seen
            self.reads += 1
        database.close()


# The mark of a savepoint comes in any order.


def newest_request_us(part: Part) -> int:
    """Return when the last request of a part came; 0 if it has no requests."""
    if not isinstance(part, RequestPart):
        return 0
    return max(part.rows.column(RECEIVED).to_pylist())


@pytest.mark.parametrize("mode", [Mode.EXACT, Mode.EAGER])
@pytest.mark.parametrize("seed", range(6))
def test_no_stage_is_at_the_savepoint_before_the_last_element_came(
    seed: int, mode: Mode, tmp_path: Path
) -> None:
    """Elements and parts come in any order, some twice; the mark may be the first of them."""
    chance = random.Random(seed)
    arrived = late_arrivals(seed)
    write_log(tmp_path, PROJECT, arrived)
    # Just after a request that no view has answered: only the operators have it.
    savepoint = 1 + chance.choice(
        [
            received
            for part in arrived
            if part.source == PROJECT.request.name
            for row, received in zip(part.rows, part.received_us, strict=True)
            if received - row["at"] < 2 * SECOND
        ]
    )
    log = ReplayLog(PROJECT, ReplayOptions(tmp_path, START - MINUTE, savepoint, 3, ends=False))
    polls, at = [], log.start
    while (found := log.next_poll(at, savepoint, 0)) is not None:
        poll, at = found
        polls.append(poll)
    polls.append(log.last_poll(at, 0))
    polls = [validated_poll(PROJECT, Poll.decode(poll.encode()))[0] for poll in polls]

    plain = PlainStream(PROJECT, SHARDS, PARTITIONS, mode)
    elements = elements_of(PROJECT, SHARDS, polls)
    parts: list[Part] = [part for poll in polls for part in request_parts(PROJECT, poll)]
    ends = [
        [
            position
            for name in (view.stream.name, PROJECT.request.name)
            for (source, _), position in zip(log.sources, at.positions, strict=True)
            if source.name == name
        ]
        for view in PROJECT.views
    ]
    for shuffled in (elements, elements[::3]):
        chance.shuffle(shuffled)
        for view, shard, data in shuffled:
            parts += plain.operate([(view, shard, data)])
            operator = plain.operator(view, shard)
            assert not operator.at_savepoint or operator.expected == ends[view]
    for operator in plain.operators.values():
        assert operator.at_savepoint
        key = operator.key
        parts.append(SavepointPart(key.view, key.shard, operator.number, operator.waiting_groups()))
    parts = [decode_part(encode_part(part)) for part in parts]
    chance.shuffle(parts)
    if seed % 2:
        parts.sort(key=newest_request_us)
    for part in parts:
        assert not plain.joiner.at_savepoint
        plain.join([part])
    assert plain.joiner.at_savepoint
    again = AnswerJoiner(PROJECT, SHARDS, 0)
    again.restore(plain.joiner.state())
    again.resume()
    assert not again.at_savepoint


# Stop and resume.


@pytest.mark.parametrize("mode", ["exact", "eager"])
def test_segments_between_random_savepoints_equal_an_uninterrupted_stream(
    mode: str, tmp_path: Path, poll_by_poll: None
) -> None:
    """Late and out of order, with rejected rows: every output is the same, and no value goes back.

    Every poll is one row, so that a savepoint does not change the polls.
    """
    arrived = late_arrivals(3)
    # With an offline log to continue, every change point is published.
    whole, stopped = (
        made(tmp_path / name, arrived, mode, publish=True) for name in ("whole", "stopped")
    )
    once = run(whole)
    with Reader(stopped).reading() as reader:
        segments = in_segments(stopped, random_savepoints(8))

    assert len(segments) == CUTS + 1
    assert once["late"] > 0
    assert once["rejected"] > 0
    if mode == "exact":
        assert once["late_requests"] > 0
        assert sum(segment["waiting"] > 0 for segment in segments) >= 3
    assert predictions(stopped) == predictions(whole)
    assert read_releases(stream_of(stopped.root)) == read_releases(stream_of(whole.root))
    assert rejected(stopped) == rejected(whole)
    assert store(stopped) == store(whole)
    assert publications_log(stopped) == publications_log(whole)
    assert reader.faults == []
    assert reader.reads > 50
    same = ("requests", "predictions", "unanswered", "rejected", "events", "releases", "late")
    assert {name: segments[-1][name] for name in same} == {name: once[name] for name in same}


def test_segments_on_prism_are_an_uninterrupted_stream(tmp_path: Path) -> None:
    """No row is late, so only the releases depend on the engine's bundles, not the values."""
    arrived = arrivals(PROJECT, random_rows(5, 70, 36), PARTITIONS, random.Random(5))
    whole = made(tmp_path / "whole", arrived, poll_rows=3)
    stopped = made(tmp_path / "stopped", arrived, poll_rows=3, publish=True)
    run(whole)
    with Reader(stopped).reading() as reader:
        segments = in_segments(stopped, random_savepoints(5, count=3), engine="prism")
    assert {segment["engine"] for segment in segments} == {"prism"}
    releases = tuple(f"release__{view.name}" for view in PROJECT.views)
    assert predictions(stopped, releases) == predictions(whole, releases)
    assert store(stopped) == store(whole)
    assert reader.faults == []
    check_evidence(stopped)


def check_evidence(config: Configuration) -> None:
    """Releases of a shard are numbered without gaps, and never go back."""
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in read_releases(stream_of(config.root)):
        at = entry["view"], entry["shard"]
        before = last.get(at, {"number": 0, "frontier_us": TIME_MIN, "positions": []})
        assert entry["number"] == before["number"] + 1
        assert entry["frontier_us"] >= before["frontier_us"]
        pairs = zip(before["positions"], entry["positions"], strict=False)
        assert all(old <= new for old, new in pairs)
        last[at] = entry
    assert len(last) == len(PROJECT.views) * SHARDS


def test_a_savepoint_is_valid_when_all_its_files_are_there(tmp_path: Path) -> None:
    config = made(tmp_path, late_arrivals(3), poll_rows=20)
    first, second = BEGIN + 2 * MINUTE, BEGIN + 4 * MINUTE
    run(config, until_us=first)
    folder, handoff = last_states(read_current(config.root))
    assert (folder.name, handoff.kind, handoff.segment) == ("00001", "stop", 1)
    assert (handoff.as_of_us, handoff.mode) == (first, "exact")
    assert handoff.began == read_record(build_of(config.root) / STATES).id
    # Of each operator a head and a base.
    assert len(handoff.files) == 2 * len(PROJECT.views) * SHARDS + 1
    run(config, until_us=second, resume=True)
    # Only the last savepoint is kept.
    assert [path.name for path in (stream_of(config.root) / SAVEPOINTS).iterdir()] == ["00002"]


def test_nothing_changes_if_no_rows_came_between_two_savepoints(
    tmp_path: Path, poll_by_poll: None
) -> None:
    config = made(tmp_path, late_arrivals(3))
    savepoint = BEGIN + 3 * MINUTE
    run(config, until_us=savepoint)
    before = store(config), predictions(config), read_releases(stream_of(config.root))
    again = run(config, until_us=savepoint, resume=True)
    assert again["segment"] == 2
    assert (store(config), predictions(config), read_releases(stream_of(config.root))) == before


# A killed run.


def kill(config: Configuration, before: Path) -> None:
    """Leave the files of a run that was killed just before its savepoint became valid.

    Args:
        config: The configuration, after the savepoint.
        before: A copy of the states at the savepoint before it.
    """
    stream_folder = stream_of(config.root)
    folder, _ = last_states(read_current(config.root))
    (folder / HANDOFF).unlink()
    handoff = read_record(before)
    shutil.copytree(before, savepoint_folder(stream_folder, handoff.segment))
    Savepoint.of(handoff).write(stream_folder)


def test_the_output_of_a_killed_segment_is_not_doubled(tmp_path: Path, poll_by_poll: None) -> None:
    arrived = late_arrivals(3)
    whole, killed = made(tmp_path / "whole", arrived), made(tmp_path / "killed", arrived)
    run(whole)
    run(killed, until_us=BEGIN + 2 * MINUTE)
    kept = last_states(read_current(killed.root))[0]
    shutil.copytree(kept, tmp_path / "kept")
    run(killed, until_us=BEGIN + 5 * MINUTE, resume=True)
    # The second savepoint removed the first one: restore it.
    kill(killed, tmp_path / "kept")
    with Reader(killed).reading() as reader:
        run(killed, resume=True)
    assert predictions(killed) == predictions(whole)
    assert rejected(killed) == rejected(whole)
    assert read_releases(stream_of(killed.root)) == read_releases(stream_of(whole.root))
    assert publications_log(killed) == publications_log(whole)
    assert store(killed)[0][0] == store(whole)[0][0]
    assert reader.faults == []


def two_late_events() -> tuple[list[Arrived], int]:
    """Two events of one cab, seconds apart, both behind the frontier when they arrive.

    Returns:
        The log, and an instant between the arrivals of the two.
    """
    at = BEGIN + 3 * MINUTE
    seconds = [(-30, -30, "a"), (13, 13, "b"), (2, 14, "a"), (1, 15, "a"), (16, 16, "b")]
    trips = [
        {"at": at + time * SECOND, "trip": f"t{received}", "cab": cab, "zone": 1,
         "fare": 10.0 + received, "card": True}
        for time, received, cab in seconds
    ]  # fmt: skip
    received = [at + second * SECOND for _, second, _ in seconds]
    empty = [Arrived(name, n, [], []) for name, n in (("rain", 0), ("hails", 0), ("hails", 1))]
    return [
        Arrived("trips", 0, trips, received),
        Arrived("trips", 1, [], []),
        *empty,
    ], at + 14_500_000


def test_a_killed_run_is_repeated_release_by_release(tmp_path: Path) -> None:
    """Also where a savepoint had cut its polls, and the configuration has changed since."""
    config = made(tmp_path, late_arrivals(3), "eager", poll_rows=3)
    run(config, until_us=BEGIN + 2 * MINUTE + 1)
    shutil.copytree(last_states(read_current(config.root))[0], tmp_path / "kept")
    run(config, until_us=BEGIN + 5 * MINUTE + 1, resume=True)
    folder = stream_of(config.root) / "releases"
    written = outputs_of(folder, 2)
    assert len(written) > 5 * SHARDS * len(PROJECT.views)
    kill(config, tmp_path / "kept")
    changed = replace(config, stream=replace(config.stream, poll_rows=500))
    run(changed, resume=True)
    again = outputs_of(folder, 2)
    assert {name: again[name] for name in written} == written
    assert len(again) > len(written)


# States that are refused.


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damage(config: Configuration) -> None:
    path = next(last_states(read_current(config.root))[0].glob("cab-*"))
    path.write_bytes(path.read_bytes()[:-1])


def lose(config: Configuration) -> None:
    next(last_states(read_current(config.root))[0].glob("cab-*")).unlink()


def correct_history(config: Configuration) -> None:
    make_build(config, late_arrivals(4))


def write_the_log_anew(config: Configuration) -> None:
    write_log(build_of(config.root), PROJECT, late_arrivals(4))


def change_one_value(config: Configuration) -> None:
    """Write the same rows at the same positions, with another fare in the first one."""
    arrived = late_arrivals(3)
    trips = next(part for part in arrived if part.source == "trips")
    trips.rows[0] = {**trips.rows[0], "fare": 1e6}
    write_log(build_of(config.root), PROJECT, arrived)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (damage, {}, "was changed after it was written"),
        (lose, {}, "is missing"),
        (correct_history, {}, "no stream in .* to resume"),
        (write_the_log_anew, {}, "(ends before positions|were made from other rows of)"),
        (change_one_value, {}, "were made from other rows of 'trips'"),
        (lambda _: None, {"mode": "eager"}, "begun in mode 'exact'"),
    ],
)
def test_states_that_cannot_be_resumed_are_refused(
    change: Callable[[Configuration], None],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    config = made(tmp_path, late_arrivals(3), poll_rows=50)
    run(config, until_us=BEGIN + MINUTE)
    folder = stream_of(config.root)
    left = contents(folder)
    change(config)
    changed = contents(folder)
    assert {name for name in left if changed.get(name) != left[name]} <= {
        name for name in left if name.startswith(SAVEPOINTS)
    }
    with pytest.raises(StateMismatch, match=message):
        run(config, resume=True, **options)
    assert contents(folder) == changed


def test_a_stream_that_has_ended_or_never_began_is_not_resumed(tmp_path: Path) -> None:
    config = made(tmp_path, late_arrivals(3), poll_rows=200)
    with pytest.raises(StateMismatch, match=r"no stream in .* to resume"):
        run(config, resume=True)
    run(config)
    with pytest.raises(StateMismatch, match="has ended"):
        run(config, resume=True)


@pytest.mark.parametrize("until", [BEGIN - 1, STOP + 1])
def test_a_savepoint_is_between_start_and_end(until: int, tmp_path: Path) -> None:
    config = made(tmp_path, late_arrivals(3))
    with pytest.raises(InputError, match="cannot stop at"):
        run(config, until_us=until)


def test_a_savepoint_without_all_states_is_not_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(tmp_path, late_arrivals(3), poll_rows=50)
    monkeypatch.setattr("tidemill.pipelines.stream.featurize.write_joiner", lambda *_: None)
    with pytest.raises(SequenceError, match=r"not all there \(answers.state"):
        run(config, until_us=BEGIN + MINUTE)
    assert last_states(read_current(config.root))[1].kind == "backfill"


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / HANDOFF).write_text(json.dumps({"as_of_us": 1, "positions": {}}))
    with pytest.raises(StateVersionError, match="written by an older version of Tidemill"):
        read_record(tmp_path)
