"""Requests with the id of an earlier one: rejected, or answered and counted, everywhere alike."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.folders import stream_of
from tests.support.proof_run import PROJECT, QUOTES, configuration, write_sources
from tests.support.stream_outputs import table_in
from tidemill.features.errors import TooManyRejected
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.ingest.ingest import validate_sources
from tidemill.pipelines.ingest.replay_rejected import replay
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify

COUNTING = replace(PROJECT, request=replace(QUOTES, repeated="count"))
REPEATS = 8


def quotes(folder: Path, number: int) -> list[dict[str, str]]:
    with (folder / f"quotes-{number}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_quotes(folder: Path, number: int, rows: list[dict[str, str]]) -> None:
    with (folder / f"quotes-{number}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(params=["received_at", None], ids=["log", "table"])
def config(tmp_path: Path, request: pytest.FixtureRequest) -> Configuration:
    """Quotes of which eight were sent twice: four in their file, four in the other one."""
    write_sources(tmp_path)
    first, second = quotes(tmp_path, 0), quotes(tmp_path, 1)
    here, there = first[60:190:40], first[70:200:40]
    for row in here:
        first.insert(first.index(row) + 1, {**row, "km": "2.5"})
    for row in there:
        later = next(n for n, one in enumerate(second) if one["received_at"] > row["received_at"])
        second.insert(later, dict(row))
    write_quotes(tmp_path, 0, first)
    write_quotes(tmp_path, 1, second)
    made = configuration(tmp_path, tmp_path / "run")
    received: str | None = request.param
    sources = {name: replace(one, received=received) for name, one in made.sources.items()}
    return replace(made, sources=sources)


def repeated_of(config: Configuration) -> int:
    rows = [row for number in (0, 1) for row in quotes(config.path.parent, number)]
    return len(rows) - len({row["quote"] for row in rows})


def rejected(config: Configuration) -> list[dict[str, Any]]:
    paths = (config.root / "rejected").glob("*.parquet")
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [row for row in rows if row["reason"] == "repeated_request_id"]


def predicted(config: Configuration) -> list[str]:
    ids: list[str] = table_in(stream_of(config.root) / "predictions")["request_id"].to_pylist()
    return ids


def proven(config: Configuration) -> dict[str, Any]:
    figures = verify(config, QuietProgress(), 10)
    assert figures["first_mismatches"] == []
    assert figures["mismatches"] == 0
    return figures


def test_they_are_rejected_records_that_name_the_first(config: Configuration) -> None:
    count = repeated_of(config)
    assert count == REPEATS
    counts = validate_sources(config, QuietProgress())["quotes"]
    assert counts["reasons"]["repeated_request_id"] == count
    assert "repeated_request_ids" not in counts
    figures = backfill(config, QuietProgress())
    assert figures["sources"]["quotes"]["reasons"]["repeated_request_id"] == count
    records = rejected(config)
    assert len(records) == count
    for record in records:
        assert (record["stage"], record["stream"]) == ("accept", "quotes")
        name = record["payload"].decode().split(",")[0]
        assert record["detail"].startswith(f"column 'quote': found '{name}', which row ")
        assert " of quotes-0.csv has" in record["detail"]
    ids = Log(config.current.build_folder).read("quotes")["quote"].to_pylist()
    assert len(ids) == len(set(ids)) == 400 - counts["rejected"] + count
    told = stream(config, QuietProgress())
    assert "repeated_request_ids" not in told
    answered = predicted(config)
    assert len(answered) == len(set(answered)) == told["predictions"]
    proven(config)


def test_they_are_answered_and_counted_where_that_is_declared(config: Configuration) -> None:
    config = replace(config, project=COUNTING)
    count = repeated_of(config)
    assert validate_sources(config, QuietProgress())["quotes"]["repeated_request_ids"] == count
    figures = backfill(config, QuietProgress())
    assert figures["sources"]["quotes"]["repeated_request_ids"] == count
    assert rejected(config) == []
    told = stream(config, QuietProgress())
    answered = predicted(config)
    assert told["repeated_request_ids"] == len(answered) - len(set(answered)) > 0
    proven(config)


def test_another_declaration_makes_another_generation(config: Configuration) -> None:
    backfill(config, QuietProgress())
    before = config.current.generation
    assert backfill(config, QuietProgress())["generation"] == before
    figures = backfill(replace(config, project=COUNTING), QuietProgress())
    assert figures["generation"] != before


def test_too_many_of_them_are_an_error_that_says_what_mends_it(config: Configuration) -> None:
    strict = replace(config.sources["quotes"], max_rejected=0.001)
    strict_config = replace(config, sources={**config.sources, "quotes": strict})
    with pytest.raises(TooManyRejected, match=r"quotes: .* rows are rejected.*to mend: ") as caught:
        validate_sources(strict_config, QuietProgress())
    if config.sources["quotes"].received is None:  # nothing is too late in a table
        assert "give each request its own id, or declare repeated='count'" in str(caught.value)


# Mended records.


def mended(config: Configuration, edit: Callable[[int, str], str]) -> Path:
    """Export the repeated quotes, and edit their payloads."""
    figures = replay(config, QuietProgress(), None)
    lines = [json.loads(line) for line in Path(figures["quotes"]["file"]).read_text().splitlines()]
    lines = [line for line in lines if line["reason"] == "repeated_request_id"]
    path = config.root.parent / "mended.jsonl"
    texts = []
    for number, line in enumerate(lines):
        line["payload"] = edit(number, line["payload"])
        texts.append(json.dumps(line) + "\n")
    path.write_text("".join(texts))
    return path


def with_id(payload: str, name: str) -> str:
    return ",".join([name, *payload.split(",")[1:]])


def test_one_with_an_id_of_its_own_stands_in_for_its_row(config: Configuration) -> None:
    config = _tolerant(config)
    backfill(config, QuietProgress())
    path = mended(config, lambda number, text: with_id(text, f"again-{number}"))
    figures = replay(config, QuietProgress(), path)["quotes"]
    assert (figures["accepted"], figures["still_rejected"]) == (REPEATS, 0)
    again = replay(config, QuietProgress(), path)["quotes"]
    assert (again["accepted"], again["mended_before"]) == (0, REPEATS)
    counts = backfill(config, QuietProgress())["sources"]["quotes"]
    assert (counts["mended"], counts["reasons"]) == (REPEATS, {})
    ids = Log(config.current.build_folder).read("quotes")["quote"].to_pylist()
    assert len(ids) == len(set(ids)) == 400 + REPEATS
    assert sum(name.startswith("again-") for name in ids) == REPEATS
    stream(config, QuietProgress())
    proven(config)


@pytest.mark.parametrize(
    "edit",
    [lambda _, text: text, lambda _, text: with_id(text, "q001")],
    ids=["unchanged", "of another request"],
)
def test_one_with_an_id_that_is_taken_stays_rejected(
    edit: Callable[[int, str], str], config: Configuration
) -> None:
    config = _tolerant(config)
    backfill(config, QuietProgress())
    before = Log(config.current.build_folder).read("quotes")
    figures = replay(config, QuietProgress(), mended(config, edit))["quotes"]
    assert figures["accepted"] == 0
    assert figures["reasons"] == {"repeated_request_id": REPEATS}
    assert all("as mended in mended.jsonl:" in one["detail"] for one in rejected(config))
    assert all("in the log has" in one["detail"] for one in rejected(config))
    counts = backfill(config, QuietProgress())["sources"]["quotes"]
    assert (counts["mended"], counts["reasons"]["repeated_request_id"]) == (0, REPEATS)
    assert Log(config.current.build_folder).read("quotes").equals(before)


def test_of_two_that_are_given_one_id_the_first_is_accepted(config: Configuration) -> None:
    """In one file, and in two that are fed one after the other."""
    config = _tolerant(config)
    backfill(config, QuietProgress())
    path = mended(config, lambda _, text: with_id(text, "twin"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    figures = replay(config, QuietProgress(), path)["quotes"]
    assert (figures["accepted"], figures["reasons"]) == (1, {"repeated_request_id": 1})
    assert any("which another mended record has" in one["detail"] for one in rejected(config))
    path.write_text(lines[2])
    assert replay(config, QuietProgress(), path)["quotes"]["accepted"] == 1  # before any backfill
    counts = backfill(config, QuietProgress())["sources"]["quotes"]
    assert counts["mended"] == 1
    assert counts["reasons"]["repeated_request_id"] == REPEATS - 1
    assert any("which a mended record has" in one["detail"] for one in rejected(config))
    ids = Log(config.current.build_folder).read("quotes")["quote"].to_pylist()
    assert ids.count("twin") == 1


def test_where_they_are_counted_mended_ones_are_too(config: Configuration) -> None:
    config = _tolerant(replace(config, project=COUNTING))
    first = quotes(config.path.parent, 0)
    write_quotes(config.path.parent, 0, [{**first[0], "km": "far"}, *first[1:]])
    assert backfill(config, QuietProgress())["sources"]["quotes"]["reasons"]["wrong_type"] == 1
    figures = replay(config, QuietProgress(), None)
    (line,) = Path(figures["quotes"]["file"]).read_text().splitlines()
    given = json.loads(line)
    given["payload"] = with_id(given["payload"].replace("far", "3.5"), first[5]["quote"])
    path = config.root.parent / "mended.jsonl"
    path.write_text(json.dumps(given) + "\n")
    assert replay(config, QuietProgress(), path)["quotes"]["accepted"] == 1
    counts = backfill(config, QuietProgress())["sources"]["quotes"]
    assert (counts["mended"], counts["repeated_request_ids"]) == (1, REPEATS + 1)


def _tolerant(config: Configuration) -> Configuration:
    """Accept quotes however late, so that mended ones of a log are not too late at its end."""
    request = replace(config.project.request, allowed_lateness="10d")
    return replace(config, project=replace(config.project, request=request))
