"""Whole shards published from state: bootstrap, republication, and a killed stream."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import feast
import pyarrow as pa
import pytest

from tests.support import fork_server, killed_stream
from tests.support.fills import OTHER_HOLDER
from tests.support.folders import build_of, offline_of, stream_of
from tests.support.proof_run import (
    EVALUATE_UNTIL,
    PROJECT,
    STREAM_UNTIL,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.stream_outputs import outputs_of, put_outputs
from tidemill.features.bigquery_dataset import BigQueryDataset, newest_name
from tidemill.features.contract import HOUR, MINUTE
from tidemill.features.errors import LostPublications, StateMismatch, SupersededWriter
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.bootstrap import bootstrap
from tidemill.pipelines.io import replay
from tidemill.pipelines.io.log import RECEIVED, Log
from tidemill.pipelines.recovery import repeat
from tidemill.pipelines.recovery import republish as module
from tidemill.pipelines.recovery.handoff import StreamRun, read_record
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.republish import republish, shown_frontiers
from tidemill.pipelines.run.paths import SAVEPOINTS, STATES
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream.release_line import LINE
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.rows import KeySpace, Row, online_keys
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.online_places import SqlitePlace
from tidemill.serving.stores.places import StorePlaces

SAMPLE = 20


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("republish")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    counts = backfill(config, QuietProgress(), publish=True)
    assert counts["published"]["change_points"] > 400
    return config


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)
    # Every poll is a bundle: with few bundles no row would be late.
    monkeypatch.setattr(replay._Read, "moment_s", 0.0)


def copy_of(config: Configuration, root: Path, mode: str = "exact") -> Configuration:
    shutil.copytree(config.root, root)
    copied = configuration(config.path.parent, root, mode)
    return replace(copied, stream=replace(copied.stream, poll_rows=15))


@pytest.fixture
def ready(backfilled: Configuration, tmp_path: Path) -> Configuration:
    """A copy of a run that is ready to stream."""
    return copy_of(backfilled, tmp_path / "run")


def run(config: Configuration, **options: Any) -> dict[str, Any]:
    return stream(config, QuietProgress(), **{"engine": "fnapi", **options})


def mismatches(config: Configuration) -> int:
    figures = verify(config, QuietProgress(), sample=SAMPLE)
    assert figures["first_mismatches"] == []
    assert figures["store_values"] > 0
    return int(figures["mismatches"])


def rows(config: Configuration) -> dict[tuple[str, bytes], Row]:
    """Every row of the store."""
    keys = {"by_driver": pa.array([f"d{n}" for n in range(6)]), "by_zone": pa.array(range(4))}
    out = {}
    database = open_database(config.online_store)
    for view in PROJECT.views:
        wanted = online_keys(view.entity.join_key, keys[view.name])
        (found,) = database.read([(KeySpace.of(PROJECT.name, view), wanted)])
        out |= {(view.name, row.key): row for row in found.rows if row is not None}
    database.close()
    return out


def everything(config: Configuration) -> tuple[dict[tuple[str, bytes], Row], Any]:
    return rows(config), shown_frontiers(config)


def current_fills(config: Configuration) -> set[str]:
    """The ids of the fills that readers see."""
    database = open_database(config.online_store)
    spaces = [KeySpace.of(PROJECT.name, view) for view in PROJECT.views]
    found = {fill.id for fill in database.fills(spaces) if fill.is_current}
    database.close()
    assert len(found) == len(spaces)
    return found


def store_files(config: Configuration) -> list[Path]:
    place = config.online_store
    assert isinstance(place, SqlitePlace)
    return sorted(place.path.parent.glob(f"{place.path.name}*"))


def delete(config: Configuration, old: Path) -> None:
    for path in store_files(config):
        path.unlink()


def roll_back(config: Configuration, old: Path) -> None:
    delete(config, old)
    for path in old.iterdir():
        shutil.copy(path, config.root)


# Bootstrap.


def test_a_bootstrap_publishes_every_entity_as_of_the_handoff(ready: Configuration) -> None:
    handoff = read_record(build_of(ready.root) / STATES)
    frontiers = {
        (view, shard): frontier
        for view, mine in handoff.frontiers.items()
        for shard, frontier in enumerate(mine)
    }
    before = everything(ready)
    assert len(before[0]) == 10
    assert before[1] == frontiers
    assert max(row.event_timestamp for row in before[0].values()) <= max(frontiers.values())
    counts = bootstrap(ready, QuietProgress())
    assert everything(ready) == before
    assert (counts["entities"], counts["written"]) == (0, 0)


def test_a_shard_goes_out_in_chunks_and_its_frontier_last(
    ready: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(ready)
    delete(ready, ready.root)
    monkeypatch.setattr(module, "CHUNK_ROWS", 2)
    counts = bootstrap(ready, QuietProgress())
    assert counts["written"] == 10
    assert everything(ready) == before


def test_a_stream_takes_over_from_a_bootstrapped_store_and_does_not_fill_it_again(
    ready: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the store is filled already")

    monkeypatch.setattr(module, "publish_states", never)
    run(ready)
    assert mismatches(ready) == 0


def test_a_store_that_lost_the_bootstrap_is_detected_when_the_stream_resumes(
    ready: Configuration,
) -> None:
    run(ready, until_us=EVALUATE_UNTIL + HOUR)
    delete(ready, ready.root)
    with pytest.raises(LostPublications, match=r"no key space of view .* run `tidemill republish`"):
        run(ready, resume=True)
    republish(ready, QuietProgress())
    run(ready, resume=True)
    assert mismatches(ready) == 0


def test_a_second_run_starts_over_and_readers_see_the_first_until_it_has_caught_up(
    ready: Configuration,
) -> None:
    run(ready)
    once, first = everything(ready), current_fills(ready)
    run(ready, until_us=EVALUATE_UNTIL + HOUR)
    assert everything(ready) == once
    assert current_fills(ready) == first
    run(ready, resume=True)
    assert everything(ready)[1] == once[1]
    assert not current_fills(ready) & first
    assert mismatches(ready) == 0


# Republication.


@pytest.mark.parametrize("mode", ["exact", "eager"])
def test_a_damaged_store_gets_the_very_rows_that_the_stream_published(
    mode: str, backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late events, too, are valid from the same instant as in the stream."""
    config = copy_of(backfilled, tmp_path / "run", mode)
    run(config, until_us=EVALUATE_UNTIL + 7 * HOUR)
    old = tmp_path / "old"
    old.mkdir()
    for path in store_files(config):
        shutil.copy(path, old)
    assert run(config, resume=True)["late"] > 0
    before = everything(config)
    # Neither damage depends on how many polls are taken together.
    for damage, together in ((delete, 1), (roll_back, 40), (delete, 65_536)):
        monkeypatch.setattr(repeat, "TOGETHER_ROWS", together)
        damage(config, old)
        assert not store_files(config) or everything(config) != before
        assert republish(config, QuietProgress())["entities"] == 10
        assert everything(config) == before
        assert republish(config, QuietProgress())["written"] == 0
    assert mismatches(config) == 0


def test_a_late_event_counts_from_the_instant_at_which_the_stream_let_it(
    ready: Configuration,
) -> None:
    """Its release is repeated alone: together with those before it, it would not be late."""
    times, received = (
        hashing.bits(
            Log(build_of(ready.root)).read("rides", 0).combine_chunks().column(name).chunk(0)
        )
        for name in ("ended_at", RECEIVED)
    )
    ids = Log(build_of(ready.root)).read("rides", 0)["ride"].to_pylist()
    late = (received > EVALUATE_UNTIL) & (received - times > 8 * MINUTE)
    late &= [ids.index(ride) == place for place, ride in enumerate(ids)]  # delivered once
    run(
        replace(ready, stream=replace(ready.stream, poll_rows=1)),
        until_us=int(received[late][0]) + 1,
    )
    before = everything(ready)
    let_in = [row.event_timestamp for row in before[0].values()]
    assert any(at - 1 not in times and at % (5 * MINUTE) for at in let_in)
    # As if the run had been killed: only the states of the backfill are valid.
    shutil.rmtree(stream_of(ready.root) / SAVEPOINTS)
    delete(ready, ready.root)
    republish(ready, QuietProgress())
    assert everything(ready) == before


def test_a_republication_ends_when_another_writer_takes_over(
    ready: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has written by then are the rows that stood."""
    run(ready)
    before = everything(ready)
    shards = []
    publish_shard = module.publish_shard

    def taken_over(database: OnlineDatabase, *arguments: Any) -> int:
        shards.append(1)
        if len(shards) == 2:
            fills = database.fills([KeySpace.of(PROJECT.name, view) for view in PROJECT.views])
            current = [fill for fill in fills if fill.is_current]
            database.take_token(current, OTHER_HOLDER, take_over=True)
        return publish_shard(database, *arguments)

    monkeypatch.setattr(module, "publish_shard", taken_over)
    with pytest.raises(SupersededWriter, match="process 2 on another-host"):
        republish(ready, QuietProgress())
    assert len(shards) == 2
    assert everything(ready) == before


def test_releases_of_another_backfill_are_not_published(ready: Configuration) -> None:
    run(ready, until_us=EVALUATE_UNTIL + HOUR)
    began = StreamRun.read(stream_of(ready.root))
    assert began is not None
    replace(began, began="of another").write(stream_of(ready.root))
    with pytest.raises(StateMismatch, match="are of another stream: it began with"):
        republish(ready, QuietProgress())


def test_a_release_without_evidence_is_not_guessed(ready: Configuration) -> None:
    run(ready)
    folder = stream_of(ready.root) / "releases"
    outputs = outputs_of(folder, 1)
    name = max(outputs)  # a shard's last one
    (line,) = outputs[name].column(LINE).to_pylist()
    entry = json.loads(line)
    line = json.dumps({**entry, "number": entry["number"] + 1})
    put_outputs(folder, 1, {**outputs, name: pa.RecordBatch.from_pydict({LINE: [line]})})
    with pytest.raises(StateMismatch, match="the polls of the log give another one"):
        republish(ready, QuietProgress())


# A killed stream.


def offline_files(config: Configuration) -> set[Path]:
    found = set((offline_of(config.root)).rglob("*.parquet"))
    assert len(found) > 5
    return found


def start_and_kill(config: Configuration, engine: str, how: str) -> None:
    """Run the stream in a process of its own, and kill it in the middle."""
    given = (
        str(config.path.parent),
        str(config.root),
        engine,
        how,
        "6000",
        str(config.stream.joiners),
    )
    process = fork_server.processes().Process(target=killed_stream.main, args=given)
    process.start()
    try:
        begun = max(shown_frontiers(config).values())
        deadline = time.monotonic() + 300
        while max(shown_frontiers(config).values()) < begun + HOUR:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("engine", "how", "joiners"),
    [("fnapi", "resume", 3), ("prism", "start over", 2), ("prism", "resume", 1)],
)
def test_a_killed_stream_resumes_from_its_last_savepoint(
    engine: str, how: str, joiners: int, ready: Configuration
) -> None:
    options = replace(ready.stream, joiners=joiners, poll_rows=killed_stream.POLL_ROWS)
    ready = replace(ready, stream=options)
    if how == "resume":
        run(ready, until_us=EVALUATE_UNTIL + 3 * HOUR, engine=engine)
    history = offline_files(ready)
    start_and_kill(ready, engine, how)
    if engine == "prism":  # the other engine processes everything at once
        assert max(shown_frontiers(ready).values()) < STREAM_UNTIL
    figures = run(ready, resume=True, engine=engine)
    assert figures["predictions"] == figures["requests"] > 100
    assert (figures["doubled"], figures["segment"]) == (0, 2 if how == "resume" else 1)
    assert offline_files(ready) > history
    last = {
        (one["view"], one["shard"]): one["frontier_us"]
        for one in read_releases(stream_of(ready.root))
    }
    for view in PROJECT.views:
        reached = OfflineLog.of(offline_of(ready.root), view).reached()
        assert reached is not None
        assert reached.last_us == min(at for (name, _), at in last.items() if name == view.name)
    assert mismatches(ready) == 0


def test_the_publications_of_a_killed_stream_can_be_published_again(ready: Configuration) -> None:
    start_and_kill(ready, "fnapi", "start over")
    delete(ready, ready.root)
    republish(ready, QuietProgress())
    run(ready, resume=True)
    assert mismatches(ready) == 0


def test_every_stage_leaves_the_offline_store_where_the_configuration_says(
    ready: Configuration,
) -> None:
    place = BigQueryDataset("some-project", "features")
    config = replace(ready, offline_store=place)
    tables = {view.name: newest_name(place, view) for view in PROJECT.views}
    middle = (EVALUATE_UNTIL + STREAM_UNTIL) // 2

    def stages() -> Iterator[object]:
        yield bootstrap(config, QuietProgress())
        yield run(config, until_us=middle)
        yield run(config, resume=True)
        yield republish(config, QuietProgress())
        yield mismatches(config)

    for done in stages():
        store = feast.FeatureStore(
            config=repo_config(PROJECT.name, StorePlaces.below(config.root), clock="replay")
        )
        found = {view.name: view.batch_source.table for view in store.list_feature_views()}
        assert found == tables, done
    # The log is written as Parquet anyway.
    for view in PROJECT.views:
        assert OfflineLog.of(offline_of(config.root), view).reached()
