"""Workers report what steps count, however many bundles a run has, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import ClassVar

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.metrics.monitoring_infos import is_user_monitoring_info
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

from tidemill.pipelines.engines.choosing import choose_engine, engine_options, make_runner, run

BUNDLES = 1_100
"""With Beam's own summing, reading the metrics of so many exceeds Python's recursion limit."""


class Bundles(RestrictionProvider):
    """As many positions as bundles."""

    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, element)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return 1

    def split(self, element: int, restriction: OffsetRange) -> Iterator[OffsetRange]:
        yield restriction


POSITIONS = Bundles()


class OneEach(beam.DoFn):
    """Gives one number in each bundle."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker=beam.DoFn.RestrictionParam(POSITIONS),
    ) -> Iterator[int]:
        at = tracker.current_restriction().start
        if tracker.try_claim(at):
            yield at
            tracker.defer_remainder(Duration(micros=0))


class Count(beam.DoFn):
    """Counts what comes."""

    def process(self, element: int) -> Iterator[int]:
        Metrics.counter("test", "came").inc()
        Metrics.distribution("test", "size").update(element)
        yield element


class SeeThreads(beam.DoFn):
    """Keeps the threads that were there in any bundle."""

    SEEN: ClassVar[set[threading.Thread]] = set()

    def process(self, element: int) -> Iterator[int]:
        SeeThreads.SEEN.update(threading.enumerate())
        yield element


def counted(bundles: int) -> PipelineResult:
    choice = choose_engine("fnapi", streaming=True)
    options = PipelineOptions(engine_options(choice))
    pipeline = beam.Pipeline(runner=make_runner(choice), options=options)
    numbers = pipeline | beam.Create([bundles]) | beam.ParDo(OneEach())
    counted = numbers | "One" >> beam.ParDo(Count()) | "Two" >> beam.ParDo(Count())
    _ = counted | beam.ParDo(SeeThreads())
    return run(pipeline, choice)


def test_what_steps_count_is_the_sum_over_many_bundles() -> None:
    found = counted(BUNDLES).metrics().query(MetricsFilter().with_namespace("test"))
    assert [one.result for one in found["counters"]] == [BUNDLES, BUNDLES]
    for one in found["distributions"]:
        assert (one.result.count, one.result.min, one.result.max) == (BUNDLES, 0, BUNDLES - 1)
        assert one.result.sum == BUNDLES * (BUNDLES - 1) // 2


def test_nothing_else_is_reported_and_nothing_is_kept_of_each_bundle() -> None:
    reported = [list(infos) for infos in counted(3)._monitoring_infos_by_stage.values()]
    of_steps = [info for infos in reported for info in infos if info.labels.get("PTRANSFORM")]
    assert len(of_steps) == 4
    assert all(is_user_monitoring_info(info) for info in of_steps)
    kept = counted(3)._monitoring_infos_by_stage.values()
    assert all(isinstance(infos, list) for infos in kept if len(list(infos)) > 1)


def test_a_bundle_starts_no_thread() -> None:
    counted(1)
    bundles, before = 50, len(SeeThreads.SEEN)
    counted(bundles)
    assert len(SeeThreads.SEEN) < before + bundles // 2
