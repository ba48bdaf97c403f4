"""Figures: what a process counts, added up over processes, and kept in files."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.logged import logged_by
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.figures import (
    Figures,
    Histogram,
    Snapshot,
    gauge_values,
    joined,
    quantile,
)
from tidemill.pipelines.telemetry.figures_files import FiguresFiles, decode, encode


class Clock:
    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_counters_add_up_by_labels() -> None:
    figures = Figures("r")
    figures.add(metrics.ROWS_READ, 3, "trips")
    figures.add(metrics.ROWS_READ, 4, "trips")
    figures.add(metrics.ROWS_READ, 1, "rain")
    found = figures.snapshot().counters
    assert found == {
        (metrics.ROWS_READ.name, ("trips",)): 7,
        (metrics.ROWS_READ.name, ("rain",)): 1,
    }
    assert figures.total(metrics.ROWS_READ) == 8


def test_counts_of_threads_are_not_lost() -> None:
    figures = Figures("r")

    def work() -> None:
        for _ in range(2_000):
            figures.add(metrics.POLLS, 1)
            figures.observe(metrics.SCORING, 0.2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert figures.total(metrics.POLLS) == 8_000
    assert sum(figures.snapshot().histograms[metrics.SCORING.name, ()].counts) == 8_000


def test_a_value_that_equals_a_bound_is_in_its_bucket() -> None:
    figures = Figures("r")
    figures.observe(metrics.BATCH, [0, 1, 1.5, 10, 100_000, 100_001], "score")
    found = figures.snapshot().histograms[metrics.BATCH.name, ("score",)]
    assert found.counts == (2, 2, 0, 0, 0, 1, 1)
    assert found.sum == 200_013.5


def test_no_values_make_no_histogram() -> None:
    figures = Figures("r")
    figures.observe(metrics.BATCH, np.array([]), "score")
    assert figures.snapshot().histograms == {}


def test_a_histogram_of_an_array_equals_one_of_its_values() -> None:
    values = np.random.default_rng(1).exponential(1.0, 500)
    at_once, one_by_one = Figures("r"), Figures("r")
    at_once.observe(metrics.ANSWER, values)
    for value in values:
        one_by_one.observe(metrics.ANSWER, value)
    place = metrics.ANSWER.name, ()
    a, b = at_once.snapshot().histograms[place], one_by_one.snapshot().histograms[place]
    assert a.counts == b.counts
    assert a.sum == pytest.approx(b.sum)


def test_parts_of_gauges_are_combined_as_declared() -> None:
    figures = Figures("r")
    for shard, frontier in enumerate([30.0, 10.0, 20.0]):
        figures.set(metrics.FRONTIER, frontier, "cab", part=str(shard))
        figures.set(metrics.TILES, frontier, "cab", part=str(shard))
    found = gauge_values(figures.snapshot())
    assert found[metrics.FRONTIER.name, ("cab",)] == 10
    assert found[metrics.TILES.name, ("cab",)] == 60


def test_of_a_shard_that_has_moved_the_newest_process_counts() -> None:
    clock = Clock()
    before, after = Figures("r", clock), Figures("r", clock)
    before.set(metrics.TILES, 5, "cab", part="0")
    before.note("view/cab/0", {"number": 1})
    before.add(metrics.POLLS, 2)
    clock.now += 1
    after.set(metrics.TILES, 6, "cab", part="0")
    after.note("view/cab/0", {"number": 2})
    after.add(metrics.POLLS, 1)
    for order in ([before, after], [after, before]):
        found = joined([one.snapshot() for one in order])
        assert gauge_values(found)[metrics.TILES.name, ("cab",)] == 6
        assert found.facts["view/cab/0"].content == {"number": 2}
        assert found.counters[metrics.POLLS.name, ()] == 3


def test_quantiles_lie_between_the_bounds_of_their_bucket() -> None:
    assert quantile(metrics.ANSWER, Histogram((0,) * 18, 0.0), 0.5) is None
    figures = Figures("r")
    figures.observe(metrics.ANSWER, [0.3] * 99 + [4_000.0])
    found = figures.snapshot().histograms[metrics.ANSWER.name, ()]
    middle = quantile(metrics.ANSWER, found, 0.5)
    assert middle is not None
    assert 0.25 < middle <= 0.5
    assert quantile(metrics.ANSWER, found, 0.999) == metrics.ANSWER.buckets[-1]


def some_figures(run: str) -> Figures:
    figures = Figures(run)
    figures.add(metrics.ROWS_REJECTED, 2, "trips", "read", "broken_json")
    figures.set(metrics.TILES, 5, "cab", part="1")
    figures.observe(metrics.TO_STORE, [0.1, 2.0], "cab")
    figures.note("view/cab/1", {"frontier_us": 5, "watermarks_us": [1, 2]})
    return figures


def test_figures_of_a_file_are_those_that_were_written(tmp_path: Path) -> None:
    files = FiguresFiles(tmp_path / "figures")
    files.begin()
    figures = some_figures("run-1")
    with files.written(figures):
        pass
    (found,) = files.read("run-1")
    assert found == Snapshot(**{**vars(figures.snapshot()), "at_s": found.at_s})
    assert files.read("run-2") == []
    assert len(files.read()) == 1


def test_a_new_run_removes_what_was_left(tmp_path: Path) -> None:
    files = FiguresFiles(tmp_path)
    with files.written(some_figures("run-1")):
        pass
    (tmp_path / "12-ab.json.0123.unfinished").write_text("{")
    files.begin()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 20_000,
        b'{"format": "else"}',
        json.dumps({"format": "tidemill-figures", "version": 2}).encode(),
        json.dumps({"format": "tidemill-figures", "version": 1, "run": "r"}).encode(),
    ],
)
def test_what_is_no_figures_is_left_out(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "1-a.json").write_bytes(content)
    assert FiguresFiles(tmp_path).read() == []


def test_metrics_of_another_version_are_left_out() -> None:
    content = json.loads(encode(some_figures("r").snapshot()))
    content["counters"].append(["tidemill_other_total", [], 5])
    content["histograms"].append([metrics.ANSWER.name, [], [1, 2], 3.0])
    found = decode(json.dumps(content).encode())
    assert found is not None
    assert found.counters == some_figures("r").snapshot().counters
    assert list(found.histograms) == [(metrics.TO_STORE.name, ("cab",))]


def test_a_full_disk_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tidemill.pipelines.telemetry import figures_files

    monkeypatch.setattr(figures_files, "EVERY_S", 0.01)
    (tmp_path / "figures").write_text("a file, where a folder should be")
    with FiguresFiles(tmp_path / "figures").written(some_figures("r")):
        for _ in range(200):
            if caplog.records:
                break
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
    said = logged_by(figures_files.__name__, caplog)
    assert [record.levelname for record in said] == ["WARNING"]
    assert "cannot be written" in said[0].getMessage()
