"""Silence behind requests on Prism: each is answered while the stream runs, though no row follows.

An engine may hold elements back between its stages until more come. A stream whose topics fall
silent shows that: its polls go on without rows, and move the frontiers past the last requests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tidemill.pipelines.stream.output_folders import releases_of

PROJECT: Final = """
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count, last, sum

KEYS = ("card", "shop", "till", "city")
payments = EventStream(
    "payments", event_time="paid_at", event_id="payment", transport=["sent_at"],
    out_of_orderness="1s",
    schema={
        "payment": "string", "paid_at": "timestamp", "sent_at": "timestamp", "amount": "float64",
        **dict.fromkeys(KEYS, "string"),
    },
)
checks = Request(
    "checks", request_id="check", request_time="asked_at", out_of_orderness="1s",
    schema={
        "check": "string", "asked_at": "timestamp", "sent_at": "timestamp", "wanted": "float64",
        **dict.fromkeys(KEYS, "string"),
    },
)
views = [
    FeatureView(
        f"by_{key}", entity=Entity(key), stream=payments, hop="1m",
        features={
            "count_10m": count(over="10m"), "spent_10m": sum(col("amount"), over="10m"),
            "last_amount": last(col("amount"), over="1h"),
        },
    )
    for key in KEYS
]
project = Project("payments", views=views, request=checks)
"""
ANSWERED_WITHIN_S: Final = 15.0
"""Disorder of a second, two seconds of quiet, and what a busy machine takes."""


@dataclass
class FourViews(LiveProject):
    """Payments and checks that four entities have a part in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        (self.folder / "project.py").write_text(PROJECT)

    def _keyed(self, row: dict[str, Any]) -> dict[str, Any]:
        others = {key: f"{key}-{self.random.randrange(7)}" for key in ("shop", "till", "city")}
        return {**row, **others}

    def _payment(self, name: str, at_us: int) -> dict[str, Any]:
        return self._keyed(super()._payment(name, at_us))

    def _check(self, name: str, at_us: int) -> dict[str, Any]:
        return self._keyed(super()._check(name, at_us))


def test_all_requests_are_answered_while_the_topics_are_silent(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = FourViews(tmp_path / "shop", broker, engine="prism", ago=1)
    project.run("backfill")
    with project.streaming() as process:
        deadline = time.monotonic() + 120
        while not releases_of(stream_of(project.folder / "run")).has_any():
            assert process.poll() is None, project.log()
            assert time.monotonic() < deadline, project.log()
            time.sleep(0.1)
        for _ in range(10):
            project.produce(12, 8)
            time.sleep(0.1)
        asked = project.sent["checks"]
        project.wait_for(asked, process, ANSWERED_WITHIN_S)
        assert project.answered() == asked
        project.drain(process)
