"""Forgetting an entity of a live stream that was stopped or killed, which goes on afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.memory_topics import MemoryTopics, TopicProject
from tests.support.searched import where_found
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify

CARD: Final = "kärtchen-4711"
"""A key that nothing else contains, and that JSON may write in two ways."""


class Shop(TopicProject):
    """A shop with a card of a name of its own."""

    def _some(self, at_us: int) -> list[tuple[str, dict[str, Any]]]:
        found = super()._some(at_us)
        for _, row in found:
            if row.get("card") == "c-1":
                row["card"] = CARD
        return found


def test_a_stream_goes_on_without_a_forgotten_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = MemoryTopics()
    topics.install(monkeypatch)
    now = time.time_ns() // 1_000 // MINUTE * MINUTE
    project = Shop(
        tmp_path / "shop", topics, begin_us=now - 2 * HOUR, poll_rows=50,
        archive=Archive(tmp_path / "archive"),
    )  # fmt: skip
    backfill(project.config(), QuietProgress())
    project.send(project.until_us, steps=60, every_us=30 * SECOND)
    project.stream(monkeypatch)
    config = project.config()
    assert verify(config, QuietProgress())["mismatches"] == 0
    root = config.root
    assert where_found(root, CARD)
    figures = forget(config, "card", CARD, QuietProgress())
    print(figures)
    assert where_found(root, CARD) == []
    assert where_found(tmp_path / "archive", CARD) == []
    found = verify(config, QuietProgress())
    print(found["first_mismatches"])
    assert found["mismatches"] == 0
    project.send(project.until_us + HOUR, steps=20, every_us=30 * SECOND)
    project.stream(monkeypatch, resume=True)
    found = verify(config, QuietProgress())
    print(found["first_mismatches"])
    assert found["mismatches"] == 0
