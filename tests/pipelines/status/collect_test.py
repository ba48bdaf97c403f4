"""How a stream is, from what it leaves on the disk, and from brokers that answer or do not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import made_root
from tests.support.live_project import CONFIGURATION, PROJECT
from tidemill.features.contract import SECOND
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.ingest.build_topics import BuildTopic, write_topics
from tidemill.pipelines.io.kafka.client import Ends
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.summary import write_summary
from tidemill.pipelines.status.ask_brokers import Answer, ask_brokers
from tidemill.pipelines.status.collect import collect
from tidemill.pipelines.status.standing import Cause, Standing, State
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.facts import source_fact, view_fact
from tidemill.pipelines.telemetry.figures import Figures
from tidemill.pipelines.telemetry.figures_files import encode
from tidemill.pipelines.telemetry.stream_record import StreamRecord, figures_files
from tidemill.serving.files.locks import lock
from tidemill.serving.generations.current import Current

NOW = 1_796_000_000 * SECOND


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    """A project of which both sources go on in topics of two partitions, after one of files."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("project", None)
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "tidemill.yaml").write_text(
        CONFIGURATION.format(
            bootstrap="127.0.0.1:1",
            payments="paid",
            checks="asked",
            train_until="2026-11-01T00:00:00Z",
            until="2026-11-02T00:00:00Z",
            engine="fnapi",
            mode="exact",
            savepoint_every="10m",
            format="json",
            shards=2,
        )
    )
    return load(tmp_path / "tidemill.yaml")


RECORD = StreamRecord(
    run="run-1", project="payments", pid=12, host="vm", engine="fnapi", mode="exact", stream=1,
    segment=2, began_us=NOW - 60 * SECOND, listen="localhost:9464",
)  # fmt: skip


def answers(*highs: int) -> dict[str, Answer]:
    ends = dict(enumerate(Ends(high, high) for high in highs))
    return {name: Answer(ends, None) for name in ("payments", "checks")}


def found(config: Configuration, answer: Mapping[str, Answer] | None = None) -> Standing:
    said = answers(100, 100) if answer is None else answer
    return collect(config, lambda topics: {name: said[name] for name in topics}, lambda: NOW)


def built(config: Configuration) -> Current:
    current = made_root(config.root)
    current.build_folder.mkdir(parents=True, exist_ok=True)
    write_topics(
        current.build_folder,
        {"payments": BuildTopic("paid", (10, 20)), "checks": BuildTopic("asked", (0, 5))},
    )
    return current


def begun(config: Configuration, record: StreamRecord | None = RECORD) -> Current:
    """Leave the records of a stream with a savepoint."""
    current = built(config)
    current.stream_folder.mkdir(parents=True, exist_ok=True)
    StreamRun("0" * 16, "exact", 4_096, False, current.generation, 0, {}, {}, clock="wall").write(
        current.stream_folder
    )
    Savepoint(1, NOW - 100 * SECOND, 7, "0" * 16).write(current.stream_folder)
    if record is not None:
        record.write(current.folder)
    return current


def watermark(behind_s: float) -> int:
    return NOW - int(behind_s * SECOND)


def report(
    current: Current,
    *,
    behind_s: float = 3.0,
    offsets: tuple[int, int] = (100, 100),
    run: str = "run-1",
    quiet: bool = True,
) -> None:
    """Leave the figures of a process: both partitions of ``checks`` are at the clock."""
    figures = Figures(run, lambda: NOW / SECOND - 0.4)
    for source, behind in (("payments", behind_s), ("checks", 2.5)):
        for partition in (0, 1):
            late = behind if partition == 1 else 2.0
            figures.note(
                source_fact(source, partition),
                {
                    "topic": source, "log_partition": partition + 1,
                    "offset": offsets[partition], "position": 5, "stable": 100, "high": 100,
                    "watermark_us": watermark(late), "is_quiet": quiet,
                    "last_message_s": NOW / SECOND - 2 if partition else None,
                },
            )  # fmt: skip
    for shard in (0, 1):
        figures.note(
            view_fact("by_card", shard),
            {
                "frontier_us": watermark(behind_s), "number": 9, "event_partitions": 3,
                "watermarks_us": [
                    2**62, watermark(2), watermark(behind_s), 2**62, watermark(2), watermark(2.5),
                ],
                "waiting_events": 3, "waiting_requests": 1,
            },
        )  # fmt: skip
    figures.add(metrics.PREDICTIONS, 40)
    figures.add(metrics.ROWS_READ, 60, "payments")
    figures.add(metrics.ROWS_REJECTED, 2, "payments", "read", "broken_json")
    figures.observe(metrics.TO_STORE, [0.3, 0.3, 20.0], "by_card")
    folder = figures_files(current.folder).folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "12-ab.json").write_bytes(encode(figures.snapshot()))


def held(current: Current, is_held: bool = True) -> Any:
    return lock(current.stream_lock, "run") if is_held else nullcontext()


def test_a_root_without_a_build(config: Configuration) -> None:
    standing = found(config)
    assert (standing.stream.state, standing.views) == (State.NO_BUILD, ())
    assert "tidemill backfill" in standing.stream.said


def test_before_the_first_stream_topics_are_read_from_where_the_build_ends(
    config: Configuration,
) -> None:
    built(config)
    standing = found(config)
    assert standing.stream.state is State.NEVER
    (_, paid) = standing.sources
    assert [(one.partition, one.offset, one.lag) for one in paid.partitions] == [
        (0, 10, 90),
        (1, 20, 80),
    ]
    (view,) = standing.views
    assert (view.caught_up, view.waits_for.cause) == (None, Cause.STOPPED)
    assert standing.predictions is None


def test_a_stream_that_runs_and_has_caught_up(config: Configuration) -> None:
    current = begun(config)
    report(current)
    with held(current):
        standing = found(config)
    assert standing.stream.state is State.RUNNING
    assert (standing.stream.pid, standing.stream.seconds) == (12, 60)
    assert standing.stream.savepoint == 1
    assert standing.stream.figures_age_s == pytest.approx(0.4)
    (view,) = standing.views
    assert (view.caught_up, view.stale_s, view.waiting_rows) == (True, 3.0, 8)
    assert view.waits_for.cause is Cause.QUIET
    # Partition 2 of the log is partition 1 of the topic: partition 0 is of files.
    assert (view.waits_for.source, view.waits_for.partition) == ("payments", 1)
    assert (standing.predictions, dict(standing.rejected)) == (
        40,
        {"payments read broken_json": 2},
    )
    assert standing.to_store is not None
    assert standing.to_store.count == 3
    assert [one.last_message_s for one in standing.sources[1].partitions] == [None, 2.0]
    assert standing.sources[1].read == 60


def test_a_stream_that_is_behind_names_the_partition_with_the_backlog(
    config: Configuration,
) -> None:
    current = begun(config)
    report(current, behind_s=500, offsets=(100, 60), quiet=False)
    with held(current):
        (view,) = found(config).views
    assert (view.caught_up, view.stale_s) == (False, 500)
    assert view.waits_for.said == "payments/1: 40 messages to read"


def test_an_open_transaction_is_named(config: Configuration) -> None:
    current = begun(config)
    report(current, behind_s=500, quiet=False)
    answer = answers(100, 100)
    answer["payments"] = Answer({0: Ends(100, 100), 1: Ends(100, 140)}, None)
    with held(current):
        standing = found(config, answer)
    assert standing.views[0].waits_for.cause is Cause.TRANSACTION
    assert [one.is_open for one in standing.sources[1].partitions] == [False, True]


def test_a_broker_that_does_not_answer_costs_its_answer_only(config: Configuration) -> None:
    current = begun(config)
    report(current, behind_s=500)
    answer = answers(100, 100)
    answer["payments"] = Answer(None, "paid: nobody listens")
    with held(current):
        standing = found(config, answer)
    assert standing.sources[1].broker == "paid: nobody listens"
    assert [one.lag for one in standing.sources[1].partitions] == [None, None]
    assert standing.views[0].waits_for.cause is Cause.BROKER
    assert standing.predictions == 40


def test_a_real_broker_that_is_not_there_is_named_in_time(config: Configuration) -> None:
    built(config)
    began = time.monotonic()
    standing = collect(config)
    assert time.monotonic() - began < 30
    for source in standing.sources:
        assert source.broker is not None
        assert "127.0.0.1:1" in source.broker


def test_brokers_that_answer_too_late_are_not_waited_for(
    config: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tidemill.pipelines.status import ask_brokers as module

    def slow(topic: Any) -> dict[int, Ends]:
        if topic.topic == "paid":
            time.sleep(3)
        return {0: Ends(1, 1)}

    monkeypatch.setattr(module, "_ends", slow)
    topics = {name: one.kafka for name, one in config.sources.items() if one.kafka is not None}
    answer = ask_brokers(topics, within_s=0.2)
    assert answer["checks"].ends == {0: Ends(1, 1)}
    assert answer["payments"] == Answer(None, "the broker has not answered within 0.2 s")


@pytest.mark.parametrize(
    ("record", "state", "said"),
    [
        (RECORD, State.KILLED, "it was killed at about"),
        (replace(RECORD, ended_us=NOW - SECOND), State.STOPPED, "it stopped at 2026-"),
        (
            replace(RECORD, ended_us=NOW, error={"class": "BrokerUnreachable", "text": "a:1"}),
            State.FAILED,
            "BrokerUnreachable: a:1",
        ),
        (None, State.STOPPED, "it does not run"),
    ],
)
def test_a_stream_that_does_not_run_says_how_it_goes_on(
    config: Configuration, record: StreamRecord | None, state: State, said: str
) -> None:
    current = begun(config, record)
    report(current)
    standing = found(config)
    assert standing.stream.state is state
    assert said in standing.stream.said
    assert "last savepoint 1" in standing.stream.said
    assert "`tidemill stream --resume`" in standing.stream.said
    assert standing.views[0].caught_up is False
    assert standing.views[0].waits_for.cause is Cause.STOPPED


@pytest.mark.parametrize("record", [None, replace(RECORD, segment=0)])
def test_a_stream_that_starts(config: Configuration, record: StreamRecord | None) -> None:
    current = begun(config, record)
    with held(current):
        standing = found(config)
    assert standing.stream.state is State.STARTING
    assert standing.views[0].waits_for.cause is Cause.STARTING


def test_figures_of_another_run_do_not_count(config: Configuration) -> None:
    current = begun(config)
    report(current, run="run-0")
    with held(current):
        standing = found(config)
    assert standing.predictions is None
    assert standing.rejected == {}


def test_damaged_figures_and_records_are_left_out(config: Configuration) -> None:
    current = begun(config)
    report(current)
    for path in (current.folder / "telemetry").rglob("*.json"):
        path.write_bytes(b"[" * 20_000)
        with held(current):
            standing = found(config)
        assert standing.stream.state in (State.RUNNING, State.STARTING)
        assert standing.predictions is None
        report(current)


def test_the_last_proof_is_shown(config: Configuration) -> None:
    begun(config)
    write_summary(config.root, "verify", {"mismatches": 2, "values": 90})
    standing = found(config)
    assert (standing.mismatches, standing.proven) == (2, 90)
    assert json.loads(json.dumps(standing.content()))["proven"] == 90
