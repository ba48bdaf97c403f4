"""The stream in eager mode: what came before a request, and never more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.folders import stream_of
from tests.support.proof_run import (
    PROJECT,
    configuration,
    score_without_models,
    write_sources,
)
from tidemill.features.contract import HOUR, MINUTE
from tidemill.features.errors import StateVersionError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)


def served(folder: Path, mode: str, **changes: Any) -> tuple[Configuration, pa.Table, Any]:
    """Stream the rides in a mode; return the predictions by id, and the figures."""
    config = configuration(folder, folder / mode, mode)
    sources = {name: replace(one, **changes) for name, one in config.sources.items()}
    options = replace(config.stream, poll_rows=40)
    config = replace(config, sources=sources, stream=options)
    backfill(config, QuietProgress())
    figures = stream(config, QuietProgress())
    files = sorted((stream_of(config.root) / "predictions").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in files]).sort_by("request_id")
    assert verify(config, QuietProgress(), 60)["mismatches"] == 0
    return config, table, figures


def test_rows_of_a_table_are_answered_as_in_exact_mode(tmp_path: Path) -> None:
    """They come in the order of their times."""
    write_sources(tmp_path)
    _, eager, figures = served(tmp_path, "eager", received=None)
    _, exact, _ = served(tmp_path, "exact", received=None)
    for name in ["request_id", *(column.name for column in PROJECT.columns)]:
        assert eager[name].equals(exact[name]), name
    for view in PROJECT.views:
        as_of = eager[f"as_of__{view.name}"]
        assert as_of.equals(eager["request_time"].cast(pa.int64()))
    assert figures["as_of_distance_ms"] == {"p50": 0, "p99": 0, "max": 0}


def test_with_receipts_an_answer_is_as_of_what_had_come_before_its_request(tmp_path: Path) -> None:
    """Not as of what came later in its poll: hours of rides are in one."""
    write_sources(tmp_path)
    _, eager, figures = served(tmp_path, "eager")
    for view in PROJECT.views:
        asked = eager["request_time"].cast(pa.int64())
        past = pc.subtract(eager[f"as_of__{view.name}"], asked)
        # A request that comes late is answered as of what had come by then.
        late = pc.subtract(eager["received_us"], asked)
        assert pc.all(pc.greater_equal(past, 0)).as_py()
        assert pc.all(pc.less_equal(past, pc.max_element_wise(late, MINUTE))).as_py()
    distance = figures["as_of_distance_ms"]
    assert distance["p50"] == 0
    assert 0 < distance["max"] < HOUR / 1_000


def test_a_stream_of_a_version_with_another_order_is_refused_by_name(tmp_path: Path) -> None:
    write_sources(tmp_path)
    config, _, _ = served(tmp_path, "eager")
    folder = stream_of(config.root)
    begun = StreamRun.read(folder)
    assert begun is not None
    replace(begun, eager_order=None, ended=False).write(folder)
    for call in (
        lambda: verify(config, QuietProgress(), 5),
        lambda: stream(config, QuietProgress(), resume=True),
    ):
        with pytest.raises(StateVersionError, match=r"orders rows by receipt.*--mode eager"):
            call()
