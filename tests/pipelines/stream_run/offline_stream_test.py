"""A stream continues the offline log that `backfill --publish` has begun."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.folders import build_of, offline_of, stream_of
from tests.support.proof_run import (
    EVALUATE_UNTIL,
    PROJECT,
    STREAM_UNTIL,
    configuration,
    score_without_models,
    write_sources,
)
from tidemill.features.contract import HOUR
from tidemill.features.definitions import FeatureView
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.merge_log import merge_log
from tidemill.pipelines.io.log import RECEIVED, Log
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.offline.log import OfflineLog, newest_rows
from tidemill.serving.stores.online_places import SqlitePlace

SAVEPOINT = EVALUATE_UNTIL + (STREAM_UNTIL - EVALUATE_UNTIL) // 2


class Heard(QuietProgress):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("offline_stream")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress(), publish=True)
    return config


@pytest.fixture
def config(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Configuration:
    score_without_models(monkeypatch)
    shutil.copytree(backfilled.root, tmp_path / "run")
    copied = configuration(backfilled.path.parent, tmp_path / "run", "exact")
    # One poll a segment: then every frontier is past all rows, except the first and the savepoints.
    return replace(copied, stream=replace(copied.stream, poll_rows=100_000))


def run(
    config: Configuration, progress: QuietProgress | None = None, **options: Any
) -> dict[str, Any]:
    return stream(config, progress or QuietProgress(), **{"engine": "fnapi", **options})


def added_to(config: Configuration) -> Path | None:
    """Return the folder of the offline logs that the current stream adds to; None for none."""
    begun = StreamRun.read(stream_of(config.root))
    assert begun is not None
    if begun.offline is None:
        return None
    return replace(config.current, offline=begun.offline).offline_root


def logged(root: Path) -> dict[str, pa.Table]:
    """The log of each view: one row per (entity, event_timestamp)."""
    out = {}
    for view in PROJECT.views:
        log = OfflineLog.of(root, view)
        parts = [pq.read_table(part, partitioning=None) for part in log.directory.glob("date=*/*")]
        out[view.name] = newest_rows(view.entity.join_key, pa.concat_tables(parts))
    return out


def ends(config: Configuration) -> dict[str, int]:
    out = {}
    for view in PROJECT.views:
        reached = OfflineLog.of(offline_of(config.root), view).reached()
        assert reached is not None
        out[view.name] = reached.last_us
    return out


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_stream_logs_every_change_up_to_its_last_release(
    engine: str, config: Configuration, tmp_path: Path
) -> None:
    """They equal those of the kernel over all history, except for cards with a late event."""
    run(config, engine=engine)
    last = {(one["view"], one["shard"]): one for one in read_releases(stream_of(config.root))}
    frontiers, positions = {}, {}
    for view in PROJECT.views:
        mine = [one for (name, _), one in last.items() if name == view.name]
        frontiers[view.name] = min(one["frontier_us"] for one in mine)
        # The positions of the event partitions come first.
        positions[view.stream.name] = mine[0]["positions"]
    assert ends(config) == frontiers
    log_history(
        PROJECT.views,
        Log(build_of(config.root)),
        tmp_path / "all",
        shards=config.shards,
        until_us=frontiers,
        positions=positions,
    )
    found, expected = logged(offline_of(config.root)), logged(tmp_path / "all")
    for view in PROJECT.views:
        keys = late_keys(config, view)
        assert of_others(found[view.name], view, keys).equals(
            of_others(expected[view.name], view, keys)
        )


def of_others(rows: pa.Table, view: FeatureView, keys: set[Any]) -> pa.Table:
    column = rows[view.entity.join_key]
    others = rows.filter(pc.invert(pc.is_in(column, pa.array(keys, column.type))))
    assert others.num_rows
    return others.combine_chunks()


def late_keys(config: Configuration, view: FeatureView) -> set[Any]:
    """The keys of events that one of the few frontiers of these runs may have passed."""
    stream, log = view.stream, Log(build_of(config.root))
    out = set()
    for partition in range(log.partitions(stream.name)):
        for row in log.read(stream.name, partition).to_pylist():
            at = int(row[stream.event_time].timestamp() * 1_000_000)
            for savepoint in (EVALUATE_UNTIL, SAVEPOINT, SAVEPOINT + 1):
                if at < savepoint - stream.out_of_orderness_us and savepoint <= row[RECEIVED]:
                    out.add(row[view.key])
    return out


def test_log_of_segments_and_of_a_stream_that_starts_over_is_that_of_one_run(
    config: Configuration,
) -> None:
    """Joins read the log of the stream before until that of the new one reaches as far."""
    run(config)
    before, whole = offline_of(config.root), logged(offline_of(config.root))
    assert added_to(config) == before
    run(config, until_us=SAVEPOINT)
    own = added_to(config)
    assert own is not None
    assert own != before
    part = logged(own)
    assert all(len(part[name]) < len(whole[name]) for name in whole), "it started over"
    assert offline_of(config.root) == before
    assert logged(before) == whole
    run(config, resume=True)
    assert offline_of(config.root) == own
    assert same_but_late(config, own, whole)
    assert logged(before) == whole


def same_but_late(config: Configuration, folder: Path, whole: dict[str, pa.Table]) -> bool:
    """The instant at which a late event counts depends on the polls."""
    found = logged(folder)
    return all(
        of_others(found[view.name], view, late_keys(config, view)).equals(
            of_others(whole[view.name], view, late_keys(config, view))
        )
        for view in PROJECT.views
    )


def test_rows_that_a_killed_segment_appended_are_removed(config: Configuration) -> None:
    run(config, until_us=SAVEPOINT)
    before, reached = logged(offline_of(config.root)), ends(config)
    folder, kept = stream_of(config.root), config.root.with_name("before")
    shutil.copytree(folder, kept)
    run(config, resume=True)
    whole = logged(offline_of(config.root))
    # As if it had been killed at its end: the stream's own files are those of the savepoint.
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    run(config, resume=True, until_us=SAVEPOINT + 1)
    taken_back = logged(offline_of(config.root))
    assert all(len(taken_back[name]) < len(whole[name]) for name in whole)
    assert all(len(taken_back[name]) >= len(before[name]) for name in before)
    assert all(ends(config)[name] >= reached[name] for name in reached)
    run(config, resume=True)
    assert same_but_late(config, offline_of(config.root), whole)


def test_merging_between_segments_changes_nothing(config: Configuration) -> None:
    """The stream continues a merged log, and starts over with links to its files."""
    config = replace(config, stream=replace(config.stream, poll_rows=500))
    run(config, until_us=SAVEPOINT)
    at_savepoint = logged(offline_of(config.root))
    merged(config)
    assert logged(offline_of(config.root)) == at_savepoint
    run(config, resume=True)
    assert added_to(config) == offline_of(config.root)
    longer = logged(offline_of(config.root))
    assert all(len(longer[name]) > len(at_savepoint[name]) for name in at_savepoint)
    merged(config)
    assert logged(offline_of(config.root)) == longer
    run(config, until_us=SAVEPOINT)
    own = added_to(config)
    assert own is not None
    assert own != offline_of(config.root)
    assert same_but_late(config, own, at_savepoint)
    assert logged(offline_of(config.root)) == longer


def merged(config: Configuration) -> None:
    """Merge every day, also those that get more rows."""
    for one in merge_log(
        config.project, offline_of(config.root), QuietProgress(), before="9999-12-31"
    ):
        assert one.files_before > one.files_after > 0


def copied(config: Configuration, root: Path) -> Configuration:
    shutil.copytree(config.root, root)
    return replace(configuration(config.path.parent, root, "exact"), stream=config.stream)


def test_a_log_that_ends_elsewhere_is_written_again(config: Configuration, tmp_path: Path) -> None:
    other = copied(config, tmp_path / "other")
    run(other)
    view = PROJECT.views[0]
    log = OfflineLog.of(offline_of(config.root), view)
    for shard in range(config.shards):
        (log.directory / "_reached" / f"{shard:05d}-of-{config.shards:05d}").unlink()
        log.reach(shard, config.shards, since_us=0, until_us=EVALUATE_UNTIL - 24 * HOUR)
    before = offline_of(config.root)
    run(config)
    assert before != added_to(config) == offline_of(config.root)
    assert logged(offline_of(config.root)) == logged(offline_of(other.root))
    assert ends(config) == ends(other)


@pytest.mark.parametrize("publish", [True, False])
def test_a_stream_that_begins_later_misses_no_change(
    publish: bool, config: Configuration, tmp_path: Path
) -> None:
    """The days between, which the stream before it has logged, are history now."""
    splits = replace(
        config.splits,
        evaluate_until_us=EVALUATE_UNTIL + 6 * HOUR,
        stream_until_us=EVALUATE_UNTIL + 18 * HOUR,
    )
    fresh = replace(config, root=tmp_path / "fresh", splits=splits)
    fresh = replace(fresh, online_store=SqlitePlace(fresh.root / "online.db"))
    backfill(fresh, QuietProgress(), publish=True)
    run(fresh)
    first = replace(config.splits, stream_until_us=EVALUATE_UNTIL + 12 * HOUR)
    run(replace(config, splits=first))
    read = logged(offline_of(config.root))
    later = replace(config, splits=splits)
    backfill(later, QuietProgress(), publish=publish)
    assert logged(offline_of(config.root)) == read
    run(later)
    assert logged(offline_of(config.root)) == logged(offline_of(fresh.root))
    assert ends(later) == ends(fresh)
    assert verify(later, QuietProgress(), 20)["mismatches"] == 0


def test_without_an_offline_log_none_is_begun(config: Configuration) -> None:
    shutil.rmtree(offline_of(config.root))
    heard = Heard()
    run(config, heard)
    assert [line for line in heard.lines if "offline log" in line] == []
    assert added_to(config) is None
    assert not offline_of(config.root).exists()
