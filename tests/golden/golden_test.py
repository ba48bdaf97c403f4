"""Golden files: data of earlier versions is read correctly, or refused by name.

These files represent the data of users. They are never written again: a version that changes a
format adds a folder (`tests.golden.make` says how) and still reads the old ones, or refuses them
with an error that says what to do. Only then is an expectation here changed, by hand.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.golden import make
from tests.golden.formats import (
    FORMATS,
    FORMER,
    LOG_FILE,
    SINCE_FRAMES_2,
    SINCE_FRAMES_5,
    SINCE_FRAMES_6,
    SINCE_FRAMES_7,
    joiner,
    operator_of,
)
from tests.support.builds import make_build
from tests.support.frames import bomb, damaged
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    START,
    arrivals,
    configuration,
    random_rows,
)
from tidemill.features.contract import MINUTE
from tidemill.features.definitions import EventStream, project, views
from tidemill.features.definitions.canonical import hash_of
from tidemill.features.errors import (
    BundleError,
    DamagedFile,
    OtherLayout,
    StateError,
    StateMismatch,
    StateVersionError,
)
from tidemill.features.rows import rejected
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.framing import MAGIC, VERSIONS, Kind
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.republish import republish
from tidemill.pipelines.recovery.resume import first_start, next_start
from tidemill.pipelines.run.paths import STATES, STREAM_RUN
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.rejected_by_stream import read_rejected
from tidemill.pipelines.stream.state_files import read_handoff, read_joiner, state_path
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.generations.current import write_current
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.offline.merge import merge_day
from tidemill.serving.online import rows
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.fills import NewFill
from tidemill.serving.online.rows import KeySpace, online_keys
from tidemill.serving.stores.online_places import SqlitePlace

HERE = Path(__file__).parent
FOLDERS = ["frames_1", "frames_2", "frames_3", "frames_4", "frames_5", "frames_6", "frames_7"]
REFUSED = {
    "frames_1": {
        "operator_head.bin": "has version 3, this code reads 6; start it from handed-over states",
        "operator_snapshot.bin": "has version 3, this code reads 4; start it from handed-over",
        "logged_release.bin": "has version 1, this code reads 3; start it from handed-over states",
        "poll.bin": "has version 1, this code reads 2; run the stream from its last savepoint",
        "batches.bin": "has version 1, this code reads 3; run the stream from its last savepoint",
        "logged_parts.bin": "a part of an answer: has version 1, this code reads 2",
        "answer_part.bin": "a part of an answer: has version 1, this code reads 2",
        "stop_part.bin": "a part of an answer: has version 1, this code reads 2",
        "published.bin": "publications of a release: has version 1, this code reads 2",
        "cab-00001-of-00002.state": "has version 3, this code reads 6; .*run `tidemill backfill`",
        "answers.state": "the joining stage: has version 1, this code reads 2; .*`tidemill backf",
        "handoff.json": "has version 2, this code reads 3; run `tidemill backfill` again",
        "stream.json": "has version 2, this code reads 11; run `tidemill stream` without --resume",
    },
    "frames_2": {
        "operator_head.bin": "has version 4, this code reads 6; start it from handed-over states",
        "operator_snapshot.bin": "has version 3, this code reads 4; start it from handed-over",
        "logged_release.bin": "has version 2, this code reads 3; start it from handed-over states",
        "batches.bin": "has version 2, this code reads 3; run the stream from its last savepoint",
        "cab-00001-of-00002.state": "has version 4, this code reads 6; .*run `tidemill backfill`",
    },
    "frames_3": {
        "operator_head.bin": "has version 5, this code reads 6; start it from handed-over states",
        "operator_snapshot.bin": "has version 3, this code reads 4; start it from handed-over",
        "cab-00001-of-00002.state": "has version 5, this code reads 6; .*run `tidemill backfill`",
    },
}
"""By folder: the files of versions that are not read any more, and how they are refused."""
BEFORE = HERE / "before_frames"
EXPECTED: dict[str, Any] = json.loads((BEFORE / "expected.json").read_text())


SPEC_1 = ("frames_1", "frames_2", "frames_3")
"""The folders whose states, parts and key spaces name the hash of a definition in version 1."""


def hash_as_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give definitions the hashes that they had in version 1 of the canonical form."""
    spec = EventStream.spec

    def without_transport(
        stream: EventStream, read: Collection[str] | None = None
    ) -> dict[str, Any]:
        return {name: value for name, value in spec(stream, read).items() if name != "transport"}

    monkeypatch.setattr(EventStream, "spec", without_transport)
    for module in (project, views):
        monkeypatch.setattr(module, "SPEC_VERSION", 1)


@pytest.fixture(autouse=True)
def no_hashes_are_known() -> Iterator[None]:
    """Forget the hashes of definitions before and after a test that changes them."""
    for cached in (hash_of, rows._key_space):
        cached.cache_clear()
    yield
    for cached in (hash_of, rows._key_space):
        cached.cache_clear()


LATER_FIELDS = {
    "stream.json": {
        "joiners": 1, "request": None, "apart": False,
        "polls": 0, "upgraded_from": None, "fill_cuts": None, "columns": None, "definitions": None,
        "models": None,
    },
    "build.json": {"definitions": None},
}  # fmt: skip
"""By record: the fields that these folders lack, with the values that reading gives them."""
READ = [
    (folder, name)
    for folder in FOLDERS
    for name in FORMATS
    if folder != "frames_1" or name not in (*FORMER, *SINCE_FRAMES_2)
    if folder >= "frames_5" or name not in SINCE_FRAMES_5
    if folder >= "frames_6" or name not in SINCE_FRAMES_6
    if folder >= "frames_7" or name not in SINCE_FRAMES_7
]


@pytest.mark.parametrize(("folder", "name"), READ)
def test_a_file_of_each_format_holds_what_was_written(
    folder: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder in SPEC_1:
        hash_as_version_1(monkeypatch)
    if (refusal := REFUSED.get(folder, {}).get(name)) is not None:
        with pytest.raises(StateVersionError, match=refusal):
            FORMATS[name](HERE / folder / name)
        return
    expected = json.loads((HERE / folder / "expected.json").read_text())[name]
    found = json.loads(json.dumps(FORMATS[name](HERE / folder / name)))
    assert found == ({**LATER_FIELDS[name], **expected} if name in LATER_FIELDS else expected)


@pytest.mark.parametrize(("name", "version"), zip(FORMER, (3, 12), strict=True))
def test_a_record_without_a_generation_is_refused_by_its_version(name: str, version: int) -> None:
    path = HERE / "frames_1" / name
    refusal = f"{path} has version 2, this code reads {version}; run"
    with pytest.raises(StateVersionError, match=refusal):
        FORMATS[name](path)


def test_every_version_that_is_written_has_a_golden_file() -> None:
    """A new version needs a new folder; without one nothing would test that it can be read."""
    found = {}
    for name in FORMATS:
        data = (HERE / FOLDERS[-1] / name).read_bytes()
        if data.startswith(MAGIC):
            found[Kind(data[8])] = int.from_bytes(data[10:12], "little")
    # What a job and its program exchange goes with the job: no later version reads it.
    kept = {kind: version for kind, version in VERSIONS.items() if kind is not Kind.EXCHANGED}
    assert found == kept


def test_golden_files_can_be_made_again(tmp_path: Path) -> None:
    """The script writes the content of this folder, so it can make the next version's folder."""
    make.make(tmp_path / "made")
    made = json.loads((tmp_path / "made" / "expected.json").read_text())
    expected = json.loads((HERE / FOLDERS[-1] / "expected.json").read_text())
    assert made.keys() == expected.keys()
    for name in expected:
        if not name.endswith(".json"):  # these have hashes of the others' bytes
            assert made[name] == expected[name], name


# A snapshot's checksum covers the kernel's state; `verify` checks outputs.
UNCHECKED = ("kernel_state.bin", "releases/release.jsonl", *SINCE_FRAMES_7)
CHECKED = [name for name in FORMATS if name not in UNCHECKED]


@pytest.mark.parametrize("name", CHECKED)
def test_any_damage_to_a_file_is_found(name: str, tmp_path: Path) -> None:
    """Other bits, missing ends or other contents raise a named error and are never read.

    White space means nothing in JSON, and padding nothing in Arrow's files. No bytes at all are no
    batches: their positions tell that they are missing.
    """
    shutil.copytree(HERE / FOLDERS[-1], tmp_path / "files")
    path = tmp_path / "files" / name
    whole, content = path.read_bytes(), FORMATS[name](path)
    errors: list[str] = []
    for number, (how, harmed) in enumerate(damaged(whole)):
        path.write_bytes(harmed)
        os.utime(path, ns=(number, number))  # a log's rows are checked once for each time of change
        try:
            found = FORMATS[name](path)
        except (StateError, DamagedFile) as error:
            errors.append(str(error))
        else:
            nothing = name.endswith("batches.bin") and not harmed and found == []
            same = not name.endswith((".bin", ".state")) and found == content
            assert nothing or same, f"with {how} it was read as {found}"
    assert len(errors) > (60 if name == LOG_FILE else 90)  # a third of the log's bytes is padding
    if not name.endswith(".bin"):
        assert all(str(path) in error and "run `tidemill" in error for error in errors)
    made = tmp_path / "made by the pickle"
    path.write_bytes(bomb(made))
    with pytest.raises((StateError, DamagedFile)):
        FORMATS[name](path)
    assert not made.exists()


# The data of the commit before frames.


def plain(value: Any) -> Any:
    """Convert values to the form of ``expected.json`` of that commit."""
    text = json.dumps(value, default=lambda v: v.hex() if isinstance(v, bytes) else str(v))
    return json.loads(text)


def table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    """A copy of the root that the commit before left at a savepoint."""
    hash_as_version_1(monkeypatch)
    shutil.copytree(BEFORE / "root", tmp_path / "root")
    begin = START + 2 * MINUTE
    return configuration(tmp_path / "root", PROJECT, begin, START + 11 * MINUTE, poll_rows=6)


def test_a_root_without_generations_is_refused_at_once_and_by_name(old: Configuration) -> None:
    before = {path: path.read_bytes() for path in old.root.rglob("*") if path.is_file()}
    quiet = QuietProgress()
    for read in (
        lambda: first_start(old, None),
        lambda: next_start(old, None),
        lambda: republish(old, quiet),
        lambda: verify(old, quiet),
        lambda: make_build(old, []),
    ):
        with pytest.raises(StateVersionError, match=r"without generations \(log, states\): run"):
            read()
    ours = {path: path.read_bytes() for path in old.root.rglob("*") if path.is_file()}
    assert {path: data for path, data in ours.items() if path in before} == before


def test_a_log_without_digests_is_refused_by_name(old: Configuration) -> None:
    log = Log(old.root)
    for name, partitions in PARTITIONS.items():
        assert log.partitions(name) == partitions
        for partition in range(partitions):
            with pytest.raises(StateVersionError, match=f"{log.path(name, partition)} is a log of"):
                log.read(name, partition)


def test_predictions_rejected_records_and_releases_of_it_are_read(old: Configuration) -> None:
    found = table(old.root / "predictions").drop_columns(["sent_us", "created_us"])
    found = found.sort_by([("partition", "ascending"), ("position", "ascending")])
    assert plain(found.to_pylist()) == EXPECTED["predictions"]
    refused = read_rejected(old.root / "rejected_by_stream")
    assert refused.schema.equals(rejected.SCHEMA)
    assert plain(refused.to_pylist()) == EXPECTED["rejected"]
    assert read_releases(old.root) == EXPECTED["releases"]


def test_the_online_store_of_it_is_brought_to_the_present_layout_and_read(
    old: Configuration,
) -> None:
    """It has no fills, marks or tokens: its rows are those of the current fill from then on."""
    database = open_database(SqlitePlace(old.root / "online.db"))
    spaces = [KeySpace.of(PROJECT.name, view) for view in PROJECT.views]
    calls: list[Callable[[], object]] = [
        lambda: database.read([(spaces[0], [])]),
        lambda: database.fills(spaces),
        lambda: database.begin_fills([NewFill(spaces[0], 1)]),
    ]
    for call in calls:
        with pytest.raises(
            OtherLayout, match=r"in layout 1; .* reads layout 2; .*`tidemill apply`"
        ):
            call()
    assert {space.name for space in spaces} <= set(database.spaces())
    database.create(spaces)
    database.create(spaces)
    keys = {
        "cab": pa.array(["a", "b", "ç", ""]),
        "zone": pa.array([1, 2, -3]),
        "weather": pa.array([1, 2]),
    }
    snapshots = database.read(
        [
            (KeySpace.of(PROJECT.name, view), online_keys(view.entity.join_key, keys[view.name]))
            for view in PROJECT.views
        ]
    )
    found = [[dict(one.frontiers.by_shard), one.rows] for one in snapshots]
    assert plain(found) == EXPECTED["store"]
    fills = database.fills(spaces)
    database.close()
    assert [fill.space for fill in fills] == spaces
    assert all(fill.is_current and fill.writer is None for fill in fills)


def test_the_offline_log_of_it_is_read_and_merged(old: Configuration) -> None:
    """The change points of the stream are among those of the log; a merge keeps them all."""
    for view in PROJECT.views:
        log = OfflineLog.of(old.root / "offline", view)
        assert log.reached() is not None
        if not log.days():
            assert view.name not in EXPECTED["publications"]
            continue
        before = sorted(map(repr, rows_of(log)))
        stamps = {row["event_timestamp"].timestamp() for row in rows_of(log)}
        published = {row["event_timestamp"] / 1e6 for row in EXPECTED["publications"][view.name]}
        assert published <= stamps
        for day in log.days():
            merge_day(log, view.entity.join_key, day)
        assert sorted(map(repr, rows_of(log))) == before


def rows_of(log: OfflineLog) -> list[dict[str, Any]]:
    files = log.files(START - MINUTE, START + 60 * MINUTE)
    return pa.concat_tables([pq.read_table(path) for path in files]).to_pylist()


def test_publications_of_it_are_read(old: Configuration) -> None:
    folders = sorted(path.name for path in (old.root / "publications").glob("*"))
    assert folders == sorted(EXPECTED["publications"])
    for name in folders:
        found = table(old.root / "publications" / name)
        assert plain(found.to_pylist()) == EXPECTED["publications"][name]


def test_the_summary_of_it_is_read_and_the_bundle_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "shop", tmp_path / "shop")
    stages = read_summary(tmp_path / "shop")
    assert stages["stream"]["predictions"] == 100
    with pytest.raises(BundleError, match=r"has format 1; .* run `tidemill train` again"):
        Bundle.load(tmp_path / "shop")


def test_states_and_stops_of_it_are_refused_by_name(old: Configuration) -> None:
    """They are not misread; the error says to run the backfill."""
    advice = "written by an older version of Tidemill.* run `tidemill backfill` again"
    with pytest.raises(StateVersionError, match=advice):
        read_record(old.root / STATES)
    with pytest.raises(StateVersionError, match=r"stream\.json was written by an older version"):
        StreamRun.read(old.root)
    for folder in (old.root / STATES, old.root / "stops" / "00001"):
        for view in range(len(PROJECT.views)):
            for shard in range(2):
                operator = operator_of(view, shard)
                path = state_path(folder, operator.key)
                with pytest.raises(
                    StateVersionError, match=f"{path}.*, as a pickle, .*{advice[-9:]}"
                ):
                    read_handoff(folder, operator)
                assert untouched(operator)
    with pytest.raises(StateVersionError, match=r"answers\.state.* as a pickle, which is not load"):
        read_joiner(old.root / "stops" / "00001", joiner())


def untouched(operator: ShardOperator) -> bool:
    return operator.number == 0 and not operator.state.n_entities and not any(operator.expected)


def test_pickles_in_their_place_are_never_loaded(old: Configuration, tmp_path: Path) -> None:
    made = tmp_path / "made by a pickle"
    folder = old.root / STATES
    for path in folder.iterdir():
        path.write_bytes(bomb(made))
    (old.root / STREAM_RUN).write_bytes(bomb(made))
    shutil.copy(folder / "handoff.json", folder / "answers.state")
    operator = operator_of()
    reads = (
        lambda: read_handoff(folder, operator),
        lambda: read_joiner(folder, joiner()),
        lambda: read_record(folder),
        lambda: StreamRun.read(old.root),
    )
    for read in reads:
        with pytest.raises(StateError):
            read()
    assert not made.exists()


def test_after_a_backfill_the_stream_can_begin(old: Configuration) -> None:
    """The advice in the error works: without the folders it names, the root is like a new one."""
    for name in ("log", "states"):
        shutil.rmtree(old.root / name)
    rows = random_rows(14, trips=24, hails=12)
    make_build(old, arrivals(PROJECT, rows, PARTITIONS, random.Random(14)))
    start = first_start(old, None)
    assert start.segment == 1
    # The old stream cannot be resumed.
    with pytest.raises(StateMismatch, match=r"no stream in .* to resume"):
        next_start(old, None)
    start.run.write(start.current.stream_folder)
    write_current(start.current)
    assert next_start(old, None).resumes
