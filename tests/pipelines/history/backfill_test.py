"""Backfill: the training table has the batch values, and the stream continues from its states."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.said import Said
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    START,
    TRIPS,
    PlainStream,
    Row,
    arrivals,
    configuration,
    expected_vectors,
    newest_publications,
    random_rows,
    vectors_of,
    without_leaks,
    write_log,
)
from tidemill import Label, col
from tidemill.features.contract import MINUTE, SECOND
from tidemill.features.errors import InputError
from tidemill.features.kernel.advance import advance
from tidemill.features.kernel.encoding import canonical_bytes
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import point_in_time, sharded
from tidemill.pipelines.history.hand_over import hand_over
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.replay import ReplayLog, ReplayOptions
from tidemill.pipelines.recovery.handoff import Handoff, read_record
from tidemill.pipelines.recovery.log_parts import parts_before, source_partitions
from tidemill.pipelines.run.progress import Progress, QuietProgress
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.state_files import read_handoff
from tidemill.pipelines.training.splits import split_table
from tidemill.pipelines.verify.compare_training import compare_training_table
from tidemill.pipelines.verify.findings import Findings
from tidemill.pipelines.verify.raw_history import logged_history

STOP = START + 11 * MINUTE
GENERATION = "0123456789abcdef"


def handed_over(config: Configuration) -> tuple[Handoff, dict[str, Any]]:
    """Write the states of a log that is written already."""
    with sharded(config, QuietProgress(), config.root, config.root / "work") as stages:
        return hand_over(stages, GENERATION)


def computed(config: Configuration, progress: Progress | None = None) -> dict[str, Any]:
    """Write the training table of a log that is written already."""
    shown = QuietProgress() if progress is None else progress
    with sharded(config, shown, config.root, config.root / "work") as stages:
        return point_in_time(stages)


def run_log(stream: PlainStream, root: Path, start_us: int, poll_rows: int) -> None:
    """Replay a log from an instant of receipt to its end."""
    log = ReplayLog(PROJECT, ReplayOptions(root, start_us, STOP, poll_rows))
    at = log.start
    while (found := log.next_poll(at, STOP, 0)) is not None:
        poll, at = found
        stream.run([poll])
    stream.run([log.final_poll(at, 0)])


def bootstrapped(operator: ShardOperator) -> Release:
    """Return what a bootstrap publishes from the state of an operator."""
    nothing = advance(State(operator.plan), None, None, START)
    everything = operator.everything()
    return Release(
        number=0, mark_before=b"", mark=operator.mark, since_us=None,
        frontier_us=operator.state.frontier_us, positions=(), answers=nothing.answers,
        publications=everything, events=0, seen={}, kernel={}, entry=None,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_from_a_handed_over_state_equals_one_that_never_stopped(
    seed: int, tmp_path: Path
) -> None:
    """At any cut, answers, state and online store are those of a stream that never stopped.

    A row may be received after the cut with a time before it: the stream still waits for it.
    """
    chance = random.Random(seed)
    rows = random_rows(seed, trips=100, hails=50)
    arrived = arrivals(PROJECT, rows, PARTITIONS, chance)
    write_log(tmp_path, PROJECT, arrived)
    whole = PlainStream(PROJECT, 2, PARTITIONS)
    run_log(whole, tmp_path, START - MINUTE, chance.randint(1, 30))

    cut = START + chance.randrange(0, 600 * SECOND)
    handed_over(configuration(tmp_path, PROJECT, cut, STOP))
    rest = PlainStream(PROJECT, 2, PARTITIONS)
    begun = []
    for view in range(len(PROJECT.views)):
        for shard in range(2):
            operator = rest.operator(view, shard)
            read_handoff(tmp_path / "states", operator)
            begun.append((view, shard, bootstrapped(operator)))
    run_log(rest, tmp_path, cut, chance.randint(1, 30))

    later = {
        row["hail"]
        for part in arrived
        if part.source == "hails"
        for row, received in zip(part.rows, part.received_us, strict=True)
        if received >= cut
    }
    expected = vectors_of(PROJECT, whole.answered)
    assert expected == expected_vectors(PROJECT, rows)
    assert vectors_of(PROJECT, rest.answered) == {name: expected[name] for name in later}
    for key, operator in whole.operators.items():
        assert canonical_bytes(rest.operators[key].state) == canonical_bytes(operator.state)
        assert rest.operators[key].expected == operator.expected
        assert rest.operators[key].counters.late == 0
        assert rest.operators[key].counters.late_requests == 0
    assert newest_publications([*begun, *rest.releases]) == newest_publications(whole.releases)
    numbers = [release.number for view, shard, release in rest.releases if (view, shard) == (0, 1)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_handoff_says_what_it_is_of(tmp_path: Path) -> None:
    rows = random_rows(1)
    arrived = arrivals(PROJECT, rows, PARTITIONS, random.Random(1))
    write_log(tmp_path, PROJECT, arrived)
    cut = START + 5 * MINUTE
    config = configuration(tmp_path, PROJECT, cut, STOP, shards=3)
    handoff, counts = handed_over(config)
    assert read_record(tmp_path / "states") == handoff
    before = {
        name: [
            sum(received < cut for received in part.received_us)
            for part in arrived
            if part.source == name
        ]
        for name in PARTITIONS
    }
    assert (handoff.kind, handoff.segment) == ("backfill", 0)
    assert (handoff.began, handoff.mode) == (None, None)
    assert (handoff.as_of_us, handoff.shards, handoff.positions) == (cut, 3, before)
    assert handoff.views == {view.name: view.hash for view in PROJECT.views}
    waits = {"cab": 10 * SECOND, "zone": 10 * SECOND, "weather": 5 * SECOND}
    assert handoff.frontiers == {name: [cut - waited] * 3 for name, waited in waits.items()}
    assert len(handoff.files) == 9
    log = Log(tmp_path)
    assert handoff.generation == GENERATION
    assert handoff.digests == {name: log.prefix_digest(name, before[name]) for name in before}
    assert counts["shards"] == 9
    assert counts["events"] == 2 * sum(before["trips"]) + sum(before["rain"])


def test_the_rows_before_an_instant_end_where_the_stream_begins(tmp_path: Path) -> None:
    write_log(tmp_path, PROJECT, arrivals(PROJECT, random_rows(1), PARTITIONS, random.Random(1)))
    cut = START + 4 * MINUTE
    log = Log(tmp_path)
    assert source_partitions(log, PROJECT) == PARTITIONS
    parts, _ = parts_before(log, PROJECT, PARTITIONS, cut)
    replay = ReplayLog(PROJECT, ReplayOptions(tmp_path, cut, STOP))
    assert tuple(part.stop for part in parts) == replay.start.positions
    # A row received later may be older by the stream's out-of-orderness.
    assert {part.source: cut - part.watermark_us for part in parts} == {
        "trips": 10 * SECOND,
        "rain": 0,
        "hails": 5 * SECOND,
    }


def training_table(root: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((root / "features").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return {row["request_id"]: row for row in table.to_pylist()}


@pytest.fixture
def backfilled(tmp_path: Path) -> tuple[dict[str, list[Row]], dict[str, dict[str, Any]]]:
    rows = without_leaks(random_rows(3))
    write_log(tmp_path, PROJECT, arrivals(PROJECT, rows, PARTITIONS, random.Random(3)))
    counts = computed(configuration(tmp_path, PROJECT, STOP, STOP + 1))
    table = training_table(tmp_path)
    labelled = sum(row["label"] is not None for row in table.values())
    assert 3 < labelled < 60
    assert counts == {"requests": 60, "rows": 60, "label_leaks": 0, "labelled": labelled}
    return rows, table


def test_the_training_table_holds_the_batch_values(
    backfilled: tuple[dict[str, list[Row]], dict[str, dict[str, Any]]],
) -> None:
    rows, table = backfilled
    expected = expected_vectors(PROJECT, rows)
    assert sorted(table) == sorted(expected)
    for name, (words, _) in expected.items():
        for column, word in zip(PROJECT.columns, words, strict=True):
            value = table[name][column.name]
            if isinstance(value, float):
                value = int(np.array([value]).view(np.int64)[0])
            assert value == word, (name, column.name)
    riders = {row["hail"]: row["riders"] for row in rows["hails"]}
    assert {name: row["riders"] for name, row in table.items()} == riders


def test_the_training_table_holds_the_labels(
    backfilled: tuple[dict[str, list[Row]], dict[str, dict[str, Any]]],
) -> None:
    rows, table = backfilled
    labelled = 0
    for asked in rows["hails"]:
        cards = [
            (trip["at"], trip["card"])
            for trip in rows["trips"]
            if trip["trip"] == asked["hail"]
            and trip["card"] is not None
            and asked["at"] < trip["at"] <= asked["at"] + 2 * MINUTE
        ]
        found = table[asked["hail"]]
        if cards:
            labelled += 1
            assert found["label"] == float(min(cards)[1])
        else:
            assert (found["label"], found["label_time"]) == (None, None)
    assert labelled > 3


def test_a_training_table_without_any_label_is_said(tmp_path: Path) -> None:
    rows = without_leaks(random_rows(3))
    rows["trips"] = [{**row, "trip": f"other-{row['trip']}"} for row in rows["trips"]]
    write_log(tmp_path, PROJECT, arrivals(PROJECT, rows, PARTITIONS, random.Random(3)))
    progress = Said()
    counts = computed(configuration(tmp_path, PROJECT, STOP, STOP + 1), progress)
    assert (counts["requests"], counts["labelled"]) == (60, 0)
    (line,) = progress.lines
    assert line.startswith("no request has a label: no event of 'trips' has the trip of a request")


def test_a_project_without_a_label_counts_none(tmp_path: Path) -> None:
    project = replace(PROJECT, label=None)
    rows = without_leaks(random_rows(3))
    write_log(tmp_path, project, arrivals(project, rows, PARTITIONS, random.Random(3)))
    progress = Said()
    counts = computed(configuration(tmp_path, project, STOP, STOP + 1), progress)
    assert "labelled" not in counts
    assert progress.lines == []


def test_a_label_event_before_its_own_request_stops_the_backfill(tmp_path: Path) -> None:
    rows = without_leaks(random_rows(3))
    rows["trips"].append({**rows["trips"][0], "trip": "h7", "at": START - SECOND})
    write_log(tmp_path, PROJECT, arrivals(PROJECT, rows, PARTITIONS, random.Random(3)))
    with pytest.raises(InputError, match="'paid_by_card': 1 of its events do not come after"):
        computed(configuration(tmp_path, PROJECT, STOP, STOP + 1))


def test_a_label_of_a_recurring_key_is_the_next_event_and_is_proven(tmp_path: Path) -> None:
    """Cabs have many trips before and after each hail."""
    label = Label(
        "next_by_card", TRIPS, col("card"), on={"cab": "cab"}, horizon="2m", recurring=True
    )
    project = replace(PROJECT, label=label)
    rows = random_rows(3)
    write_log(tmp_path, project, arrivals(project, rows, PARTITIONS, random.Random(3)))
    config = configuration(tmp_path, project, STOP, STOP + 1)
    counts = computed(config)
    found = training_table(tmp_path)
    for row in rows["hails"]:
        after = [
            (trip["at"], trip["trip"].encode(), trip["card"])
            for trip in rows["trips"]
            if trip["cab"] == row["cab"] and trip["card"] is not None
            if row["at"] < trip["at"] <= row["at"] + label.horizon_us
        ]
        assert found[row["hail"]]["label"] == (float(min(after)[2]) if after else None)
    assert counts["labelled"] == sum(row["label"] is not None for row in found.values()) > 20
    findings = Findings()
    history = logged_history(tmp_path, project)
    assert compare_training_table(history, tmp_path, QuietProgress(), findings) == 60
    assert findings.count == 0
    # What is known at a split: a label may arrive up to the horizon after its request.
    split_us = START + 5 * MINUTE
    counted = split_table(project, tmp_path / "features", split_us, STOP).counts
    assert counted.train == sum(
        row["label"] is not None and found_at + label.horizon_us <= split_us
        for row, found_at in ((found[one["hail"]], one["at"]) for one in rows["hails"])
    )
