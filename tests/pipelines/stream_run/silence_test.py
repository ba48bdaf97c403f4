"""Silence behind requests on Prism: each is answered while the stream runs, though no row follows.

An engine may hold elements back between its stages until more come. Where silent topics follow the
clock of their messages, a stream whose topics all fall silent shows that: no frontier moves any
more, so no poll comes that would push the answers on which the last one has let go.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject

PROJECT: Final = """
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count, last, sum

KEYS = ("card", "shop", "till", "city")
payments = EventStream(
    "payments", event_time="paid_at", event_id="payment", transport=["sent_at"],
    out_of_orderness="200ms",
    schema={
        "payment": "string", "paid_at": "timestamp", "sent_at": "timestamp", "amount": "float64",
        **dict.fromkeys(KEYS, "string"),
    },
)
checks = Request(
    "checks", request_id="check", request_time="asked_at", out_of_orderness="200ms",
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
PAST_S: Final = 0.6
"""Payments that come so much later make requests due: it is more than disorder and quiet."""
SILENCES: Final = 5
ANSWERED_WITHIN_S: Final = 90.0
"""What a busy machine takes."""


@dataclass
class FourViews(LiveProject):
    """Payments and checks that four entities have a part in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        (self.folder / "project.py").write_text(PROJECT)
        config = self.folder / "tidemill.yaml"
        by_messages = config.read_text().replace(
            "format: json", "format: json, clock: messages, quiet: 200ms"
        )
        config.write_text(by_messages)

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
    project = FourViews(
        tmp_path / "shop", broker, engine="prism", savepoint_every="2s", sinks=True, ago=1
    )
    project.run("backfill")
    with project.streaming() as process:
        deadline = time.monotonic() + 120
        while not project.answered():  # until it runs
            assert process.poll() is None, project.log()
            assert time.monotonic() < deadline, project.log()
            project.produce(6, 4)
            time.sleep(0.5)
        for silence in range(SILENCES):
            for _ in range(4):
                project.produce(30, 20)
            asked = project.sent["checks"]
            time.sleep(PAST_S)
            project.produce(8, 0)  # and then nothing more
            deadline = time.monotonic() + ANSWERED_WITHIN_S
            while (answered := project.answered()) < asked:
                assert process.poll() is None, project.log()
                said = f"silence {silence}: {answered} of {asked} are answered"
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
        project.drain(process)
