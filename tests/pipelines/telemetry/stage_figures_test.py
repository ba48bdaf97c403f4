"""Figures from inside a pipeline, in the process of the stream and in others."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import pytest

from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.figures import Figures, joined
from tidemill.pipelines.telemetry.figures_files import FiguresFiles
from tidemill.pipelines.telemetry.polls_taken import PollsTaken
from tidemill.pipelines.telemetry.stage_figures import NO_FIGURES, FiguresPlace


def test_a_place_that_was_pickled_leads_to_the_figures_of_the_stream() -> None:
    place, figures = FiguresPlace("run-1"), Figures("run-1")
    with place.leads_to(figures):
        there = pickle.loads(pickle.dumps(place))
        there.here().add(metrics.PREDICTIONS, 2)
        there.here().observe(metrics.ANSWER, [0.5])
    assert figures.total(metrics.PREDICTIONS) == 2
    place.here().add(metrics.PREDICTIONS, 5)  # of nobody now
    assert figures.total(metrics.PREDICTIONS) == 2


def work(place: FiguresPlace) -> None:
    place.here().add(metrics.PREDICTIONS, 3)
    place.here().set(metrics.POLLS_TAKEN, 41, part="by_card-0")


def test_a_worker_in_another_process_writes_beside_the_stream(tmp_path: Path) -> None:
    files = FiguresFiles(tmp_path / "figures")
    files.begin()
    place, figures = FiguresPlace("run-1", files.folder), Figures("run-1")
    taken = pickle.loads(pickle.dumps(PollsTaken(place)))
    with place.leads_to(figures):
        figures.add(metrics.PREDICTIONS, 1)
        assert taken() == 0
        worker = multiprocessing.get_context("spawn").Process(target=work, args=(place,))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
        (written,) = files.read("run-1")
        assert written.pid == worker.pid
        both = joined([figures.snapshot(), written])
        assert both.counters[metrics.PREDICTIONS.name, ()] == 4
        # The source waits for operators that run elsewhere.
        assert PollsTaken(place)() == 41
        place.here().set(metrics.POLLS_TAKEN, 7, part="by_card-1")
        assert PollsTaken(place)() == 7  # those of this process are known at once


def test_a_worker_that_shares_no_disk_only_counts(tmp_path: Path) -> None:
    place = FiguresPlace("run-2", tmp_path / "of another machine")
    work(place)
    assert place.here().figures.total(metrics.PREDICTIONS) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_that_nobody_looks_at_may_report(tmp_path: Path) -> None:
    work(NO_FIGURES)
    assert NO_FIGURES.here().figures.highest(metrics.POLLS_TAKEN) == 41


@pytest.mark.parametrize("looked", [0, 3])
def test_how_far_operators_are_can_be_pickled_at_any_time(looked: int) -> None:
    taken = PollsTaken(FiguresPlace("run-3"))
    for _ in range(looked):
        assert taken() == 0
    assert pickle.loads(pickle.dumps(taken)) == PollsTaken(FiguresPlace("run-3"))
