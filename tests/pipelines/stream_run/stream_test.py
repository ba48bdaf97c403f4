"""The complete stream: on each engine every request is counted, or the run fails."""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest

from tests.support.builds import make_build
from tests.support.folders import build_of, stream_of
from tests.support.lock_holder import lock_holder
from tests.support.said import Said
from tests.support.strategies import to_batch
from tests.support.stream_outputs import rows_in
from tests.support.streaming_project import ENGINES, Row, arrivals, configuration
from tests.support.trained_bundle import DEPOT, PROJECT, REQUEST, SCANS, START, bundle, with_window
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.definitions import Project
from tidemill.features.errors import BundleError, Locked, SequenceError, StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.point_in_time import columns_of, values_at
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.republish import republish
from tidemill.pipelines.run.paths import PREDICTIONS, RELEASES
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import featurize
from tidemill.pipelines.stream.answer_parts import AnswerPart, RequestPart
from tidemill.pipelines.stream.rejected_by_stream import read_rejected
from tidemill.pipelines.stream.shard import Shard, is_batches, is_request
from tidemill.pipelines.stream.wire_format import decode_part
from tidemill.pipelines.stream_run import wiring as module
from tidemill.pipelines.stream_run.short_turns import TURN_S
from tidemill.pipelines.stream_run.stream import run_id, stream

CUT = START + 4 * HOUR
STOP = START + 8 * HOUR
PARTITIONS = {"scans": 2, "pickups": 2}


def random_rows(seed: int) -> dict[str, list[Row]]:
    chance = random.Random(seed)
    depots = ("north", "süd", "west")

    def time() -> int:
        return START + chance.randrange(8 * 3_600) * SECOND

    scans = [
        {"at": time(), "scan": f"s{n}", "parcel": f"p{n}", "depot": chance.choice(depots),
         "minutes": chance.uniform(0, 30)}
        for n in range(400)
    ]  # fmt: skip
    pickups = [
        {"at": time(), "parcel": f"r{n}", "depot": chance.choice((*depots, None)),
         "grams": chance.randrange(1_000), "metres": chance.uniform(0, 9), "fragile": True}
        for n in range(300)
    ]  # fmt: skip
    return {"scans": scans, "pickups": pickups}


@pytest.fixture
def rows() -> dict[str, list[Row]]:
    return random_rows(1)


@pytest.fixture
def config(tmp_path: Path, rows: dict[str, list[Row]]) -> Configuration:
    """A root with a log, a live bundle and a handed-over state."""
    trained = bundle().directory
    shutil.copytree(trained, tmp_path / "bundles" / trained.name)
    (tmp_path / "bundles" / "current").write_text(trained.name)
    made = configuration(tmp_path, PROJECT, CUT, STOP, poll_rows=60)
    make_build(made, arrivals(PROJECT, rows, PARTITIONS, random.Random(1)))
    return made


def predictions(root: Path) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for row in rows_in(stream_of(root) / "predictions"):
        assert row["request_id"] not in out
        out[row["request_id"]] = row
    return out


def asked_after_the_cut(rows: dict[str, list[Row]]) -> list[Row]:
    return [row for row in rows["pickups"] if row["at"] >= CUT]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_request_is_answered_with_the_batch_values(
    engine: str, config: Configuration, rows: dict[str, list[Row]]
) -> None:
    exchange = config.root / "exchange"
    unused = replace(config.stream, exchange=f"file://{exchange}")
    summary = stream(replace(config, stream=unused), said := Said(), engine=engine)
    assert [line for line in said.lines if "stream.exchange is not used" in line] == said.lines[:1]
    assert not exchange.exists()
    asked = asked_after_the_cut(rows)
    assert (summary["requests"], summary["predictions"]) == (len(asked), len(asked))
    assert (summary["unanswered"], summary["rejected"], summary["late"]) == (0, 0, 0)
    assert summary["engine"] == engine
    assert summary["events"] == sum(row["at"] >= CUT for row in rows["scans"])
    found = predictions(config.root)
    times = np.array([row["at"] for row in asked], np.int64)
    keys = to_batch(REQUEST.schema, asked).column("depot")
    values, nulls = values_at(DEPOT, to_batch(SCANS.schema, rows["scans"]), keys, times)
    named = columns_of(DEPOT, values, nulls)
    for index, row in enumerate(asked):
        mine = found[row["parcel"]]
        assert mine["as_of__depot"] == row["at"]
        assert mine["bundle_version"] == summary["bundle"]
        assert 0.0 < mine["score"] < 1.0
        for name, column in named.items():
            assert mine[name] == column[index].as_py()


def test_every_answer_names_a_release_that_is_there(config: Configuration) -> None:
    stream(config, QuietProgress(), engine="fnapi")
    releases = {
        (entry["view"], entry["shard"], entry["number"]): entry
        for entry in read_releases(stream_of(config.root))
    }
    for _, shard, number in releases:
        assert ("depot", shard, number - 1) in releases or number == 1
    for row in predictions(config.root).values():
        entry = releases["depot", row["shard__depot"], row["release__depot"]]
        assert entry["frontier_us"] >= row["as_of__depot"]
        # The release's position is past the request; event partitions come first.
        assert entry["positions"][2 + row["partition"]] > row["position"]
    assert sum(entry["answers"] for entry in releases.values()) == len(predictions(config.root))


def test_a_stream_that_starts_over_has_a_folder_of_its_own_and_leaves_the_one_before(
    config: Configuration,
) -> None:
    """Only the number of releases depends on the engine's bundles."""
    first = stream(config, QuietProgress(), engine="fnapi")
    before = stream_of(config.root)
    written = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
    assert {path.relative_to(before).parts[0] for path in written} >= {PREDICTIONS, RELEASES}
    again = stream(config, QuietProgress(), engine="fnapi")
    assert stream_of(config.root) != before
    assert {path: path.read_bytes() for path in before.rglob("*") if path.is_file()} == written
    assert len(read_releases(stream_of(config.root))) == again["releases"]
    assert len(predictions(config.root)) == again["predictions"]
    counts = ("requests", "predictions", "releases", "frontiers_us", "duplicates", "rejected")
    assert {name: again[name] for name in counts} == {name: first[name] for name in counts}


def test_a_run_is_named_by_root_and_segment(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_id(root, 1) == run_id(tmp_path / "other" / ".." / "root", 1)
    assert len({run_id(root, 1), run_id(root, 2), run_id(tmp_path, 1)}) == 3


def test_an_eager_stream_answers_every_request_too(
    config: Configuration, rows: dict[str, list[Row]]
) -> None:
    summary = stream(config, QuietProgress(), engine="fnapi", mode="eager")
    assert summary["mode"] == "eager"
    assert summary["predictions"] == len(asked_after_the_cut(rows))
    at = {row["parcel"]: row["at"] for row in rows["pickups"]}
    assert all(row["as_of__depot"] >= at[name] for name, row in predictions(config.root).items())


@beam.typehints.with_input_types(Poll)
@beam.typehints.with_output_types(tuple[str, bytes])
class Lossy(Shard):
    """`Shard` on an engine that loses one element: the one of a kind with a number."""

    OF_KIND = staticmethod(is_batches)
    NUMBER = 0
    SEEN = 0
    TURN_S = 0.0

    def process(self, element: Poll) -> Iterator[tuple[str, bytes]]:
        Lossy.TURN_S = sys.getswitchinterval()
        for sharded in super().process(element):
            Lossy.SEEN += Lossy.OF_KIND(sharded)
            if not Lossy.OF_KIND(sharded) or Lossy.NUMBER != Lossy.SEEN:
                yield sharded


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [is_batches, is_request])
def test_a_run_whose_engine_lost_an_element_fails(
    engine: str, kind: Any, config: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it lost events or requests, some requests have no prediction."""
    monkeypatch.setattr(module, "Shard", Lossy)
    monkeypatch.setattr(Lossy, "OF_KIND", staticmethod(kind))
    monkeypatch.setattr(Lossy, "NUMBER", 3)
    Lossy.SEEN = 0
    with pytest.raises(SequenceError, match=r"requests went in, .* lost or doubled batches"):
        stream(config, QuietProgress(), engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gap_fails_the_job_and_says_where(
    engine: str, config: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Shard", Lossy)
    monkeypatch.setattr(Lossy, "OF_KIND", staticmethod(is_batches))
    monkeypatch.setattr(Lossy, "NUMBER", 1)
    Lossy.SEEN = 0
    hasty = replace(config, stream=replace(config.stream, gap_batches=1))
    turn_s = sys.getswitchinterval()
    with pytest.raises(Exception, match=r"depot shard 0 of 2: poll 1 never came"):
        stream(hasty, QuietProgress(), engine=engine)
    assert pytest.approx(TURN_S) == Lossy.TURN_S
    assert sys.getswitchinterval() == pytest.approx(turn_s)


def test_requests_that_a_view_went_past_are_rejected_records_that_name_it(
    config: Configuration, rows: dict[str, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first releases reach the joining stage without their answers."""

    def without_answers(data: bytes, project: Project) -> RequestPart | AnswerPart:
        part = decode_part(data, project)
        if isinstance(part, AnswerPart) and part.number <= 2:
            return replace(part, answers=None)
        return part

    monkeypatch.setattr(featurize, "decode_part", without_answers)
    patient = replace(config, stream=replace(config.stream, answer_within_us=MINUTE))
    summary = stream(patient, QuietProgress(), engine="fnapi")
    assert summary["unanswered"] > 0
    assert summary["predictions"] + summary["unanswered"] == len(asked_after_the_cut(rows))
    records = read_rejected(stream_of(config.root) / "rejected_by_stream").to_pylist()
    assert len(records) == summary["unanswered"]
    answered = predictions(config.root) if summary["predictions"] else {}
    for record in records:
        assert (record["stage"], record["reason"]) == ("answer", "no_answer")
        assert record["detail"] == "views depot did not answer in time"
        assert record["origin"] == f"pickups/{record['partition']}:{record['position']}"
        assert json.loads(record["payload"])["parcel"] not in answered


# Starts that are refused.


def test_only_one_process_runs_a_generations_stream_and_others_wait_for_none(
    config: Configuration,
) -> None:
    lock = config.current.stream_lock
    with lock_holder(lock) as (_, pid):
        with pytest.raises(Locked, match=f"run this generation's stream, and process {pid} on "):
            stream(config, QuietProgress(), engine="fnapi")
        assert config.current.stream == 0
        republish(config, QuietProgress())
        make_build(config, arrivals(PROJECT, random_rows(1), PARTITIONS, random.Random(1)))
    assert stream(config, QuietProgress(), engine="fnapi")["predictions"] > 0


def test_a_stream_that_waits_begins_when_the_other_has_ended(config: Configuration) -> None:
    with lock_holder(config.current.stream_lock) as (process, _):
        ended: list[int] = []

        def run() -> None:
            ended.append(stream(config, QuietProgress(), engine="fnapi", wait=True)["predictions"])

        waiter = threading.Thread(target=run)
        waiter.start()
        waiter.join(1.0)
        assert config.current.stream == 0, "two streams of one generation ran"
        process.kill()
        waiter.join(300)
    assert len(ended) == 1
    assert config.current.stream == 1


def test_a_stream_needs_a_handed_over_state(config: Configuration) -> None:
    shutil.rmtree(build_of(config.root) / "states")
    with pytest.raises(StateMismatch, match=r"no handed-over state .* run `tidemill backfill`"):
        stream(config, QuietProgress())


def test_a_stream_needs_a_bundle(config: Configuration) -> None:
    (config.root / "bundles" / "current").unlink()
    with pytest.raises(BundleError, match="no live bundle"):
        stream(config, QuietProgress())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project": with_window("2d")}, "'depot': the handed-over state was made for definition"),
        ({"shards": 3}, "has 2 shards, the configuration says 3"),
    ],
)
def test_a_state_of_other_definitions_or_shards_is_refused(
    change: dict[str, Any], message: str, config: Configuration
) -> None:
    with pytest.raises(StateMismatch, match=message):
        stream(replace(config, **change), QuietProgress())


def test_a_state_of_another_instant_is_refused(config: Configuration) -> None:
    splits = replace(config.splits, evaluate_until_us=CUT + 1)
    with pytest.raises(StateMismatch, match=r"ends at another instant than splits\.evaluate_until"):
        stream(replace(config, splits=splits), QuietProgress())


def test_a_release_that_the_engine_repeated_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "releases"
    folder.mkdir()
    lines = [json.dumps({"view": "a", "shard": 0, "number": n}) for n in (2, 1, 10, 2)]
    (folder / "0.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "1.jsonl").write_text(lines[0] + "\n")
    assert [entry["number"] for entry in read_releases(tmp_path)] == [1, 2, 10]
