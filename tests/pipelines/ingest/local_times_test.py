"""Local times that occurred twice, from the files to the log: rejected, or resolved and counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.builds import ingest_build
from tests.support.folders import build_of
from tidemill import Entity, EventStream, FeatureView, Project, Request, count
from tidemill.features.definitions import STRING, TIMESTAMP
from tidemill.pipelines.config.configuration import Configuration, Splits
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.ingest.ingest import validate_sources
from tidemill.pipelines.ingest.replay_rejected import replay
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.raw_history import read_history
from tidemill.serving.stores.online_places import SqlitePlace

events = EventStream(
    "events",
    schema={"id": STRING, "at": TIMESTAMP, "user": STRING, "got": TIMESTAMP},
    event_time="at",
    event_id="id",
    transport=["got"],
    out_of_orderness="3h",
)
asked = Request(
    "asked",
    schema={"id": STRING, "at": TIMESTAMP, "user": STRING},
    request_time="at",
    request_id="id",
)
project = Project(
    name="berlin",
    request=asked,
    views=[FeatureView("seen", Entity("user"), events, hop="5m", features={"n": count(over="1h")})],
)
# Clocks in Berlin went from 03:00 back to 02:00 at 01:00 UTC.
EVENTS = """\
id,at,user,got
e0,2024-10-27T01:50:00,u,2024-10-26T23:51:00Z
e1,2024-10-27T02:30:00,u,2024-10-27T00:31:00Z
e2,2024-10-27T02:30:00,u,2024-10-27T01:31:00Z
e3,2024-10-27T03:10:00,u,2024-10-27T02:11:00Z
"""
E0, E3 = "2024-10-26T23:50:00", "2024-10-27T02:10:00"
FIRST, LAST = "2024-10-27T00:30:00", "2024-10-27T01:30:00"


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "asked.csv").write_text("id,at,user\nr0,2024-10-27T02:00:00Z,u\n")
    return Configuration(
        path=tmp_path / "tidemill.yaml",
        project_name="here:project",
        project=project,
        root=tmp_path / "run",
        shards=1,
        sources={
            "events": Source("events", (str(tmp_path / "events.csv"),), zone="Europe/Berlin"),
            "asked": Source("asked", (str(tmp_path / "asked.csv"),)),
        },
        splits=Splits(1, 2, 3),
        online_store=SqlitePlace(tmp_path / "online.db"),
    )


def with_events(config: Configuration, **changes: Any) -> Configuration:
    source = dataclasses.replace(config.sources["events"], **changes)
    return dataclasses.replace(config, sources={**config.sources, "events": source})


def logged(config: Configuration) -> list[str]:
    times = Log(build_of(config.root)).read("events")["at"].to_pylist()
    return [time.replace(tzinfo=None).isoformat() for time in times]


def rejections(config: Configuration) -> list[tuple[str, str, bytes]]:
    paths = (config.root / "rejected").glob("*.parquet")
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [(row["reason"], row["origin"], row["payload"]) for row in rows]


def test_a_repeated_time_is_rejected_with_its_payload_and_can_be_mended(
    config: Configuration, tmp_path: Path
) -> None:
    counts = ingest_build(config)["events"]
    assert logged(config) == [E0, E3]
    (example,) = counts["rejected_examples"]
    assert (example["column"], example["records"], example["origin"]) == ("at", 2, "events.csv:3")
    assert counts["reasons"] == {"ambiguous_local_time": 2}
    assert "repeated_local_times" not in counts
    lines = EVENTS.splitlines()
    assert rejections(config) == [
        ("ambiguous_local_time", "events.csv:3", lines[2].encode()),
        ("ambiguous_local_time", "events.csv:4", lines[3].encode()),
    ]
    exported = Path(replay(config, QuietProgress(), None)["events"]["file"]).read_text()
    mended = tmp_path / "mended.jsonl"
    records = [json.loads(line) for line in exported.splitlines()]
    for record, offset in zip(records, ("+02:00", "+01:00"), strict=True):
        record["payload"] = record["payload"].replace("02:30:00", f"02:30:00{offset}")
    mended.write_text("".join(json.dumps(record) + "\n" for record in records))
    replay(config, QuietProgress(), mended)
    ingest_build(config)
    assert logged(config) == [E0, E3, FIRST, LAST]
    assert rejections(config) == []


@pytest.mark.parametrize(
    ("rule", "received", "times"),
    [
        ("first", None, [E0, FIRST, FIRST, E3]),
        ("last", None, [E0, LAST, LAST, E3]),
        ("infer", "got", [E0, FIRST, LAST, E3]),
    ],
)
def test_the_chosen_instant_is_counted_and_the_same_in_validate_log_and_verify(
    config: Configuration, rule: str, received: str | None, times: list[str]
) -> None:
    config = with_events(config, ambiguous=rule, received=received)
    counts = ingest_build(config)["events"]
    assert logged(config) == times
    assert (counts["kept"], counts["rejected"], counts["repeated_local_times"]) == (4, 0, 2)
    validated = validate_sources(config, QuietProgress())["events"]
    assert validated == {name: counts[name] for name in validated}
    assert validated["repeated_local_times"] == 2
    raw = read_history(config, ["events"], QuietProgress()).sources["events"].rows["at"]
    assert [time.replace(tzinfo=None).isoformat() for time in raw.to_pylist()] == times


def test_each_file_has_an_order_of_arrival_of_its_own(
    config: Configuration, tmp_path: Path
) -> None:
    local = "id,at,user,got\n{0}0,{1}Z,u,2024-10-27T02:40:00\n{0}1,{1}Z,u,2024-10-27T02:20:00\n"
    (tmp_path / "events.csv").write_text(local.format("a", LAST))
    (tmp_path / "events2.csv").write_text(local.format("b", LAST))
    files = (str(tmp_path / "events.csv"), str(tmp_path / "events2.csv"))
    config = with_events(config, files=files, ambiguous="infer", received="got")
    counts = ingest_build(config)["events"]
    # In each file the second row shows that clocks were set back; the first one's receipt is open.
    assert counts["reasons"] == {"ambiguous_local_time": 2}
    assert Log(build_of(config.root)).read("events")["id"].to_pylist() == ["a1", "b1"]
    assert counts["repeated_local_times"] == 2


def test_a_mended_record_is_not_inferred_from_its_neighbours(
    config: Configuration, tmp_path: Path
) -> None:
    (tmp_path / "events.csv").write_text("id,at,user,got\ne0,x,u,2024-10-27T02:40:00\n")
    config = with_events(config, ambiguous="infer", received="got")
    ingest_build(config)
    exported = Path(replay(config, QuietProgress(), None)["events"]["file"]).read_text()
    (record,) = (json.loads(line) for line in exported.splitlines())
    record["payload"] = f"e0,{LAST}Z,u,2024-10-27T02:20:00"
    mended = tmp_path / "mended.jsonl"
    mended.write_text(json.dumps(record))
    figures = replay(config, QuietProgress(), mended)
    assert figures["events"]["reasons"] == {"ambiguous_local_time": 1}
