"""Jobs in batch that meet their workers in an exchange, and run in this process all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.engines.choosing import choose_engine, make_runner, run
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.exchange.batch_end import JobEnd


class ThroughExchange(BatchJobs):
    """Runs jobs on FnApiRunner, as if its workers did not see the root."""

    def _run_attempt(self, attempt: Attempt, step: str, wire: Any, meets: JobEnd | None) -> Any:
        assert meets is not None
        choice = choose_engine("fnapi", streaming=False)
        pipeline = beam.Pipeline(runner=make_runner(choice))
        wire(pipeline, meets.place)
        return run(pipeline, choice)


def install(patch: pytest.MonkeyPatch, exchange: Path) -> list[str]:
    """Let all backfills and trainings of this process meet their workers in a folder.

    Returns:
        What they say; it is added to.
    """
    said: list[str] = []
    kind = choose_engine("flink", streaming=False)

    def of(
        config: Configuration, _: str | None, __: Sequence[str], ___: Callable[[str], None]
    ) -> BatchJobs:
        return ThroughExchange(
            kind, config.project.name, config.project_name, config.project.hash, config.root,
            said.append, f"file://{exchange}",
        )  # fmt: skip

    patch.setattr(BatchJobs, "of", staticmethod(of))
    return said
