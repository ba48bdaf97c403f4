"""Engines: they are chosen by name, run as chosen, and lose no rows."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.coders import StrUtf8Coder, VarIntCoder
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from tidemill.features.errors import PrismMissing, UnknownEngine, WrongEngine
from tidemill.pipelines.engines import choosing
from tidemill.pipelines.engines.choosing import (
    Engine,
    EngineChoice,
    choose_engine,
    engine_of,
    engine_options,
    find_prism,
    make_runner,
    run,
)

ROWS = 3_000
KEYS = 7
PER_POLL = 250

# Both engines run the steps in this process, so a step can hand its rows to the test.
ARRIVED: list[tuple[str, int]] = []


class RunningCount(beam.DoFn):
    """Numbers the rows of a key from 1: a lost row is a missing number, a doubled one a second."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())
    ROWS_SEEN = BagStateSpec("rows", StrUtf8Coder())

    def process(
        self,
        row: tuple[str, int],
        count=beam.DoFn.StateParam(COUNT),
        rows=beam.DoFn.StateParam(ROWS_SEEN),
    ) -> Iterator[tuple[str, int]]:
        number = (count.read() or 0) + 1
        count.write(number)
        rows.add(str(row[1]))
        yield row[0], number


class Endless(RestrictionProvider):
    """The restriction of an unbounded source: an offset for each row."""

    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, element)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return restriction.size()


ENDLESS = Endless()
BY_HAND = ManualWatermarkEstimator.default_provider()


class Polled(beam.DoFn):
    """An unbounded source that emits some rows, defers, and ends after the last row."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker=beam.DoFn.RestrictionParam(ENDLESS),
        watermark=beam.DoFn.WatermarkEstimatorParam(BY_HAND),
    ) -> Iterable[TimestampedValue]:
        offset = tracker.current_restriction().start
        for position in range(offset, min(offset + PER_POLL, element)):
            if not tracker.try_claim(position):
                return
            at = Timestamp(position)
            yield TimestampedValue((f"key {position % KEYS}", position), at)
            watermark.set_watermark(at)
        if offset + PER_POLL < element:
            tracker.defer_remainder(Duration(0.005))


def keep(row: tuple[str, int]) -> None:
    ARRIVED.append(row)


class Sour(Exception):
    """An error of a user's step."""


def refuse(row: int) -> int:
    if row == 17:
        raise Sour(f"row {row} is sour")
    return row


@pytest.fixture
def arrived() -> list[tuple[str, int]]:
    ARRIVED.clear()
    return ARRIVED


def pipeline_on(choice: EngineChoice) -> beam.Pipeline:
    return beam.Pipeline(
        runner=make_runner(choice), options=PipelineOptions(engine_options(choice))
    )


def every_number_once() -> Counter[tuple[str, int]]:
    rows_of = Counter(f"key {row % KEYS}" for row in range(ROWS))
    return Counter((key, n) for key, rows in rows_of.items() for n in range(1, rows + 1))


@pytest.fixture
def no_prism(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without Prism: an empty working directory and an empty repository."""
    monkeypatch.delenv(choosing.PRISM_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choosing, "_REPOSITORY", tmp_path / "repository")
    return tmp_path


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


class TestChoice:
    def test_a_batch_run_gets_fnapi(self) -> None:
        choice = choose_engine(None, streaming=False)
        assert choice.name == "fnapi"
        assert "bounded" in choice.why

    def test_a_stream_gets_prism_where_it_is_built(self, no_prism: Path) -> None:
        binary = program(no_prism / choosing.PRISM_PATH)
        choice = choose_engine(None, streaming=True)
        assert (choice.name, choice.prism) == ("prism", binary)
        assert "unbounded" in choice.why

    def test_a_stream_without_prism_gets_fnapi_with_the_reason(self, no_prism: Path) -> None:
        choice = choose_engine(None, streaming=True)
        assert (choice.name, choice.prism, choice.streaming) == ("fnapi", None, True)
        assert "Prism is not built here" in choice.why

    @pytest.mark.parametrize("name", ["fnapi", "bundle"])
    def test_a_request_is_granted(self, name: str) -> None:
        choice = choose_engine(name, streaming=True)
        assert choice.name == name
        assert "as requested" in choice.why

    def test_prism_requested_but_missing_is_no_other_engine(self, no_prism: Path) -> None:
        with pytest.raises(PrismMissing, match="make prism"):
            choose_engine("prism", streaming=True)

    def test_an_unknown_engine_is_refused_with_the_nearest_name(self) -> None:
        with pytest.raises(UnknownEngine, match="did you mean 'prism'"):
            choose_engine("prisma", streaming=True)
        with pytest.raises(UnknownEngine, match="fnapi, prism, flink, dataflow, bundle"):
            choose_engine("quux", streaming=True)

    def test_prism_goes_with_a_binary(self) -> None:
        with pytest.raises(ValueError, match="prism=None"):
            EngineChoice(Engine.PRISM, "because", streaming=True)
        with pytest.raises(ValueError, match="'fnapi'"):
            EngineChoice(Engine.FNAPI, "because", streaming=True, prism=Path("prism"))


class TestFindPrism:
    def test_the_variable_wins(self, no_prism: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program(no_prism / choosing.PRISM_PATH)
        named = program(no_prism / "elsewhere" / "prism")
        monkeypatch.setenv(choosing.PRISM_VARIABLE, str(named))
        assert find_prism() == named

    def test_a_wrong_variable_is_an_error_and_not_passed_over(
        self, no_prism: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program(no_prism / choosing.PRISM_PATH)
        monkeypatch.setenv(choosing.PRISM_VARIABLE, str(no_prism / "nowhere"))
        with pytest.raises(PrismMissing, match=r"TIDEMILL_PRISM=.*nowhere"):
            find_prism()

    def test_the_working_directory_comes_before_the_repository(self, no_prism: Path) -> None:
        in_repository = program(no_prism / "repository" / choosing.PRISM_PATH)
        assert find_prism() == in_repository
        here = program(no_prism / choosing.PRISM_PATH)
        assert find_prism() == here

    def test_a_file_that_cannot_be_run_is_not_prism(self, no_prism: Path) -> None:
        program(no_prism / choosing.PRISM_PATH).chmod(0o644)
        with pytest.raises(PrismMissing, match="make prism"):
            find_prism()


class TestOptions:
    def test_prism_never_splits_a_source(self) -> None:
        for streaming in (False, True):
            choice = EngineChoice(Engine.PRISM, "because", streaming, Path("prism"))
            options = engine_options(choice)
            assert "--experiments=prism_disable_sdf_split" in options
            assert "--environment_type=LOOPBACK" in options
            assert ("--streaming" in options) is streaming

    def test_a_stream_on_prism_outlives_a_year(self) -> None:
        choice = EngineChoice(Engine.PRISM, "because", True, Path("prism"))
        (timeout,) = [o for o in engine_options(choice) if o.startswith("--job_server_timeout=")]
        assert int(timeout.split("=")[1]) > 365 * 24 * 3600

    def test_the_switch_is_never_taken(self) -> None:
        from apache_beam.runners.direct.direct_runner import SwitchingDirectRunner

        for name in ("fnapi", "prism", "bundle"):
            assert not isinstance(make_runner(choose_engine(name, False)), SwitchingDirectRunner)


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
class TestRun:
    def test_a_bounded_stateful_pipeline_loses_no_rows(
        self, engine: str, arrived: list[tuple[str, int]]
    ) -> None:
        choice = choose_engine(engine, streaming=False)
        pipeline = pipeline_on(choice)
        (
            pipeline
            | beam.Create([(f"key {row % KEYS}", row) for row in range(ROWS)])
            | beam.ParDo(RunningCount())
            | beam.Map(keep)
        )
        result = run(pipeline, choice)
        assert engine_of(result) == engine
        assert Counter(arrived) == every_number_once()

    def test_an_unbounded_source_that_ends_loses_no_rows(
        self, engine: str, arrived: list[tuple[str, int]]
    ) -> None:
        choice = choose_engine(engine, streaming=True)
        pipeline = pipeline_on(choice)
        (
            pipeline
            | beam.Create([ROWS])
            | beam.ParDo(Polled())
            | beam.ParDo(RunningCount())
            | beam.Map(keep)
        )
        result = run(pipeline, choice)
        assert engine_of(result) == engine
        assert Counter(arrived) == every_number_once()

    def test_an_error_in_a_step_is_raised_with_its_name(
        self, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Prism's log file stays there
        choice = choose_engine(engine, streaming=False)
        pipeline = pipeline_on(choice)
        pipeline | beam.Create(range(30)) | "Refuse sour rows" >> beam.Map(refuse)
        with pytest.raises(Exception, match="row 17 is sour") as caught:
            run(pipeline, choice)
        assert "Sour" in str(caught.value) or "Sour" in type(caught.value).__name__
        assert "Refuse sour rows" in str(caught.value)


def test_a_test_stream_runs_on_the_bundle_based_engine(arrived: list[tuple[str, int]]) -> None:
    choice = choose_engine("bundle", streaming=True)
    pipeline = pipeline_on(choice)
    stream = test_stream.TestStream().add_elements([("key", 1), ("key", 2)])
    stream = stream.advance_watermark_to_infinity()
    pipeline | stream | beam.ParDo(RunningCount()) | beam.Map(keep)
    result = run(pipeline, choice)
    assert engine_of(result) == "bundle"
    assert sorted(arrived) == [("key", 1), ("key", 2)]


def test_a_pipeline_that_ran_elsewhere_is_not_accepted() -> None:
    pipeline = pipeline_on(choose_engine("fnapi", streaming=False))
    pipeline | beam.Create([1])
    with pytest.raises(WrongEngine, match="ran on 'fnapi', chosen was 'bundle'"):
        run(pipeline, choose_engine("bundle", streaming=False))


def test_choosing_an_engine_does_not_import_beam() -> None:
    code = (
        "import sys; from tidemill.pipelines.engines.choosing import choose_engine; "
        "choose_engine('fnapi', False); sys.exit('apache_beam' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
