"""The engine encodes elements and state with coders that load no pickle."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam import coders
from apache_beam.coders import BytesCoder
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners.common import DoFnSignature
from apache_beam.transforms import userstate
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from tests.support.builds import make_build
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    START,
    arrivals,
    configuration,
    random_rows,
)
from tidemill.features.contract import MINUTE
from tidemill.pipelines.delivery.delivery import Delivery
from tidemill.pipelines.ingest.ingest import Ingest
from tidemill.pipelines.io.coders import PollCoder, RecordBatchCoder
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.poll_restriction import (
    Restriction,
    RestrictionCoder,
    WatermarkCoder,
    _Provider,
    _Watermarks,
)
from tidemill.pipelines.io.replay import ReplayOptions, _Read
from tidemill.pipelines.recovery.resume import first_start
from tidemill.pipelines.stream import featurize
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions
from tidemill.pipelines.stream_run.replay_input import ReplayInput
from tidemill.pipelines.stream_run.wiring import wire

PLAIN = (coders.BytesCoder, coders.StrUtf8Coder, coders.VarIntCoder, RecordBatchCoder, PollCoder)


class Coders(PipelineVisitor):
    """Finds the coder of every collection of a pipeline, by the step that makes it."""

    def __init__(self) -> None:
        self.found: dict[str, coders.Coder] = {}

    def visit_transform(self, applied: Any) -> None:
        for tag, pcoll in applied.outputs.items():
            coder = coders.registry.get_coder(pcoll.element_type)
            self.found[f"{applied.full_label} {tag}"] = coder


def is_plain(coder: coders.Coder) -> bool:
    if isinstance(coder, (coders.TupleCoder, coders.IterableCoder)):
        return all(
            map(is_plain, coder._coders if hasattr(coder, "_coders") else [coder._elem_coder])
        )
    return type(coder) in PLAIN


def test_no_element_of_the_stream_is_pickled(tmp_path: Path) -> None:
    """Beam's coder for elements of unknown type falls back to pickle; no collection has it."""
    rows = random_rows(1, trips=4, hails=2)
    config = configuration(tmp_path, PROJECT, START, START + 11 * MINUTE)
    build = make_build(config, arrivals(PROJECT, rows, PARTITIONS, random.Random(1))).build_folder
    entrance = ReplayInput(PROJECT, ReplayOptions(build, START, START + 11 * MINUTE), tmp_path, 1)
    made = FeaturizeOptions(run="coders", shards=2, partitions=PARTITIONS)
    start = first_start(config, None)
    delivery = Delivery.fence({}, start.current, start.segment, "coders")
    pipeline = beam.Pipeline()
    wire(pipeline, PROJECT, entrance, made, [], start, delivery)
    visitor = Coders()
    pipeline.visit(visitor)
    assert len(visitor.found) > 15
    assert {step: coder for step, coder in visitor.found.items() if not is_plain(coder)} == {}


def test_no_element_of_an_ingest_is_pickled(tmp_path: Path) -> None:
    config = configuration(tmp_path, PROJECT, START, START + MINUTE)
    visitor = Coders()
    pipeline = beam.Pipeline()
    ingest = beam.ParDo(Ingest(config, tmp_path, tmp_path)).with_outputs("rejected")
    _ = pipeline | beam.Create(["trips"]) | ingest
    pipeline.visit(visitor)
    found = {step: coder for step, coder in visitor.found.items() if "Ingest" in step}
    assert len(found) == 2
    assert all(map(is_plain, found.values()))


def test_state_cells_are_bytes() -> None:
    cells = ("head", "log", "snapshot")
    stages = {featurize._Operate: (*cells, "waiting"), featurize._Join: cells}
    for stage, names in stages.items():
        specs, _ = userstate.get_dofn_specs(stage(PROJECT, None))
        assert {spec.name: type(spec.coder) for spec in specs} == dict.fromkeys(names, BytesCoder)


@pytest.mark.parametrize(
    "restriction",
    [
        Restriction(Cut(0, ())),
        Restriction(Cut(2**40, (0, 2**62, 5)), True, True),
        Restriction(Cut(7, tuple(range(300))), is_sent=True),
    ],
)
def test_a_restriction_of_the_replay_comes_back_as_it_was(restriction: Any) -> None:
    coder = _Provider().restriction_coder()
    found = coder.decode(coder.encode(restriction))
    assert found == restriction
    assert isinstance(found.at, Cut)


@pytest.mark.parametrize("state", [None, Timestamp(micros=-(2**60)), MIN_TIMESTAMP, Timestamp(7)])
def test_the_watermark_of_the_replay_comes_back_as_it_was(state: Timestamp | None) -> None:
    coder = _Watermarks().estimator_state_coder()
    found = coder.decode(coder.encode(state))
    assert found == state
    assert _Watermarks().create_watermark_estimator(found).current_watermark() == state


def test_the_state_of_the_source_is_not_pickled() -> None:
    signature = DoFnSignature(_Read(PROJECT, ReplayOptions(Path(), 0, 1)))
    restriction, watermark = signature.get_restriction_coder()._coders
    assert isinstance(restriction, RestrictionCoder)
    assert isinstance(watermark, WatermarkCoder)


def test_who_wires_a_stream_has_registered_the_coders() -> None:
    """In a process of its own: this file imports them itself."""
    code = """
import pyarrow as pa
from apache_beam.coders import registry
from tidemill.pipelines.io.poll import Poll
import tidemill.pipelines.stream_run.stream
print(*(type(registry.get_coder(kind)).__name__ for kind in (Poll, pa.RecordBatch)))
"""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["PollCoder", "RecordBatchCoder"]
