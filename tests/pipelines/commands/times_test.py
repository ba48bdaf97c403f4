"""Times print as ISO 8601, UTC, with Z: in every command's output, errors and report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.command_runs import Run, arguments, without_a_model
from tests.support.folders import offline_of, stream_of
from tests.support.stream_outputs import outputs_of, put_outputs
from tests.support.times import other_times
from tidemill.features.contract import DAY, TIME_MAX, TIME_MIN, write_instant
from tidemill.pipelines.commands.cli import COMMANDS
from tidemill.pipelines.run.tables import columns_as_rows, figure_tables
from tidemill.pipelines.stream.release_line import LINE
from tidemill.serving.files.records import checksum_of

ELSEWHERE = {
    "demo": "tests/pipelines/commands/demo_test.py",
    "train": "the same, since it takes a model",
    "init": "it writes a folder and names it",
    "archive": "tests/pipelines/archive",
    "export-archive": "tests/pipelines/export",
    "reload": "tests/pipelines/commands/reload_test.py, since it takes a stream",
    "promote": "tests/pipelines/stream_run/promote_live_test.py, since it takes models",
    "rollback": "the same",
    "up": "tests/pipelines/servers",
    "down": "tests/pipelines/servers",
}
"""Commands that other tests run."""


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score without a model, as the root was made."""
    without_a_model(monkeypatch)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ELSEWHERE])
def test_what_a_command_prints(command: str, project: Path, run: Run) -> None:
    given = [one for one in arguments(command, project) if one != "--quiet"]
    ended = run(*given, *{"merge-log": ["--dry-run"]}.get(command, []))
    assert ended.out, ended.err
    assert other_times(ended.out + ended.err) == []


def test_what_backfill_stream_and_verify_print_names_instants(project: Path, run: Run) -> None:
    places = ["--config", str(project / "tidemill.yaml")]
    streamed = run("stream", "--until", "2026-01-03T18:00:00Z", *places)
    assert streamed.status == 0, streamed.err
    assert "frontiers / by driver" in streamed.out
    (reached,) = set(re.findall(r"frontiers / .* (2026-01-03T17:\S+Z)\n", streamed.out))
    features = run("features", "by_driver", "d1", *places)
    assert reached in features.out
    explained = run("explain", "q000", *places)
    assert "as of 2026-01-0" in explained.out
    for ended in (streamed, features, explained, run("backfill", *places)):
        assert other_times(ended.out + ended.err) == []


@pytest.mark.parametrize("until", ["2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"])
def test_an_instant_that_is_refused(until: str, project: Path, run: Run) -> None:
    ended = run(*arguments("stream", project), "--until", until)
    ended.is_explained(until, "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z")
    assert other_times(ended.err) == []


def move_predictions(root: Path) -> None:
    path = next((stream_of(root) / "predictions").glob("00001-*.parquet"))
    table = pq.read_table(path)
    for name in ("as_of__by_driver",):
        field = table.schema.field(name)
        moved = pa.array([at + 1_000_000 for at in table[name].cast(pa.int64()).to_pylist()])
        table = table.set_column(table.column_names.index(name), field, moved.cast(field.type))
    pq.write_table(table, path)


def move_releases(root: Path) -> None:
    folder = stream_of(root) / "releases"
    outputs = outputs_of(folder, 1)
    name = max(outputs)
    entry = json.loads(outputs[name].column(LINE)[0].as_py())
    line = json.dumps({**entry, "frontier_us": entry["frontier_us"] + 1})
    put_outputs(folder, 1, {**outputs, name: pa.RecordBatch.from_pydict({LINE: [line]})})


def move_publications(root: Path) -> None:
    path = next((stream_of(root) / "publications" / "by_driver").glob("*.parquet"))
    table = pq.read_table(path)
    times = table["event_timestamp"].to_pylist()
    column = pa.array([time + 1 for time in times[:1]] + times[1:])
    place = table.column_names.index("event_timestamp")
    pq.write_table(table.set_column(place, table.schema.field(place), column), path)


def move_offline_rows(root: Path) -> None:
    path = next(offline_of(root).glob("by_driver/*/date=*/*.parquet"))
    table = pq.read_table(path)
    field = table.schema.field("tidemill_valid_until")
    column = pa.array([1_767_400_000_000_000] * len(table)).cast(field.type)
    pq.write_table(
        table.set_column(table.column_names.index("tidemill_valid_until"), field, column), path
    )


def move_records(root: Path) -> None:
    """Change the record of the stream, with its checksum."""
    path = stream_of(root) / "stream.json"
    content = json.loads(path.read_text())
    header = {name: content.pop(name) for name in ("format", "version", "checksum")}
    content["positions"] = {**content["positions"], "rides": [1]}
    header["checksum"] = checksum_of(content)
    path.write_text(json.dumps({**header, **content}))


TAMPERS = {
    move_predictions: "as_of",
    move_releases: "frontier_us",
    move_publications: "event_timestamp",
    move_offline_rows: "tidemill_valid_until",
    move_records: "positions",
}


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
def test_the_mismatches_of_verify(tamper: Callable[[Path], None], project: Path, run: Run) -> None:
    tamper(project / "run")
    ended = run(*arguments("verify", project))
    assert ended.status == 1
    assert TAMPERS[tamper] in ended.out
    assert other_times(ended.out + ended.err) == []


def test_the_frontiers_in_errors_of_a_store(project: Path, run: Run) -> None:
    root = project / "run"
    for path in root.glob("online.db*"):
        path.unlink()
    assert run(*arguments("apply", project)).status == 0
    ended = run(*arguments("stream --resume", project))
    assert ended.status == 1
    assert other_times(ended.err) == []


def test_figures_whose_names_end_in_us_are_instants() -> None:
    (table,) = figure_tables("stage", {"as_of_us": DAY, "frontiers_us": {"cab": 1, "zone": None}})
    assert table.rows == [
        ("as of", "1970-01-02T00:00:00Z"),
        ("frontiers / cab", "1970-01-01T00:00:00.000001Z"),
        ("frontiers / zone", "-"),
    ]


def test_a_time_in_a_column_is_an_instant() -> None:
    times = pa.array([DAY], pa.timestamp("us", tz="UTC")).to_pylist()
    table = columns_as_rows({"key": ["a"], "last_at": times})
    assert table.rows == [("last_at", "1970-01-02T00:00:00Z")]


def test_an_instant_of_any_size_has_a_text() -> None:
    assert write_instant(TIME_MIN) == "before all time"
    assert write_instant(TIME_MAX) == "the end of time"
    assert write_instant(-1) == "1969-12-31T23:59:59.999999Z"
    assert write_instant(253_402_300_800_000_000) == "10000-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "text",
    [
        "frontier 1385856000000000",
        "as of  1,385,856,000,000,000",
        "since 1385856000",
        "2013-12-01 00:00:00+00:00",
        "2013-12-01T00:00:00",
        "2013-12-01T00:00:00+00:00",
        "datetime.datetime(2013, 12, 1)",
    ],
)
def test_the_search_finds_other_times(text: str) -> None:
    assert other_times(text)
    assert not other_times("2013-12-01T00:00:00Z, 1,385 rows, digest 138585600000000a")
