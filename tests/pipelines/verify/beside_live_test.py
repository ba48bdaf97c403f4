"""`verify` and `republish` beside a live stream that releases and replaces its savepoints."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.memory_topics import TopicProject
from tidemill.features.contract import SECOND
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery import republish as republish_module
from tidemill.pipelines.recovery.handoff import last_states
from tidemill.pipelines.recovery.republish import republish
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify


def test_what_no_savepoint_has_sealed_is_no_mismatch_and_savepoints_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = TopicProject.of_now(tmp_path / "shop", monkeypatch, savepoint_every_us=SECOND)
    backfill(project.config(), QuietProgress())
    found: list[dict[str, Any]] = []
    replaced: list[bool] = []

    def segment() -> int:
        written = Savepoint.read(project.config().current.stream_folder)
        return 0 if written is None else written.segment

    def await_segment(wanted: int) -> None:
        deadline = time.monotonic() + 90
        while segment() < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def meanwhile() -> None:
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(0.1):
                project.send(time.time_ns() // 1_000, steps=4, every_us=10)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            await_segment(2)
            found.extend(verify(project.config(), QuietProgress(), sample=0) for _ in range(2))
            read = republish_module.StreamRun.read

            def late(folder: Path) -> Any:
                # The stream has another savepoint once the states have been looked for.
                if not replaced:
                    replaced.append(True)
                    await_segment(last_states(project.config().current)[1].segment + 2)
                return read(folder)

            monkeypatch.setattr(republish_module.StreamRun, "read", late)
            republish(project.config(), QuietProgress())
        finally:
            ended.set()
            sender.join()

    project.stream(monkeypatch, meanwhile=meanwhile, mode="eager")
    assert [one["mismatches"] for one in found] == [0, 0], [
        one["first_mismatches"][:3] for one in found
    ]
    assert any(one["not_sealed"] > 0 for one in found)
    assert found[-1]["predictions"] > 0
    assert replaced == [True]
    # All is compared once the stream was stopped.
    told = verify(project.config(), QuietProgress(), sample=0)
    assert (told["mismatches"], told["not_sealed"]) == (0, 0), told["first_mismatches"][:3]
