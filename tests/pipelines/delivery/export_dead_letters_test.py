"""Exporting from the topic of rejected records where the root is not at hand.

`stream_run.replay_live_test` does it beside a stream, from a real topic.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipelines.delivery.dead_letters_test import given, written
from tests.support.memory_topics import MemoryTopics, TopicProject
from tidemill.features.errors import ConfigurationError, InputError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.sink_section import REJECTED, KafkaSink
from tidemill.pipelines.delivery import export_dead_letters as module
from tidemill.pipelines.delivery.dead_letters import DeadLetters
from tidemill.pipelines.delivery.export_dead_letters import export_dead_letters
from tidemill.pipelines.delivery.outgoing import shortened
from tidemill.pipelines.run.holder import root_id
from tidemill.pipelines.run.progress import Progress, QuietProgress


class Says(QuietProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    """A configuration without a root, whose topic has records of two roots."""

    def read(_: KafkaSink, letters: DeadLetters, __: Progress) -> None:
        large, *others = written([b"x" * 50, b"\xff{", b"["], source="payments")
        letters.take(given([*others[::-1], shortened(REJECTED, large)]))
        letters.take(given(written([b"{"], source="gone")))
        letters.take(given(written([b"{"], "other/generation/1")))

    monkeypatch.setattr(module, "read_dead_letters", read)
    sink = KafkaSink(bootstrap=("memory:1",), topic="rejected")
    return TopicProject(tmp_path, MemoryTopics(), files=False).config(rejected=sink)


def test_without_a_root_the_roots_of_the_topic_are_named(config: Configuration) -> None:
    with pytest.raises(
        InputError, match=r"roots root \(4 messages\), other \(1 messages\).*--root-id"
    ):
        export_dead_letters(config, QuietProgress())


def test_a_root_that_is_named_is_exported_in_the_order_of_its_log(config: Configuration) -> None:
    progress = Says()
    figures = export_dead_letters(config, progress, root="root")
    path = config.root / "rejected" / "export" / "payments.jsonl"
    assert figures == {
        "payments": {
            "exported": 2, "without_payload": 1, "mended_before": 0, "file": str(path),
        }
    }  # fmt: skip
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["payload"] for line in lines] == ["\\xff{", "["]
    assert lines[0]["payload_base64"] == "/3s="
    assert lines[0]["reason"] == "broken_json"
    said = "\n".join(progress.said)
    assert "of 'payments' (t/1@0, broken_json): the topic did not take its 50 bytes" in said
    assert "Records of gone are left out" in said
    assert "1 messages are of other roots: other" in said
    assert "--mended FILE, on the root root" in said


def test_records_that_the_root_does_not_know_are_counted(
    config: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"{root_id(config.root)}/generation/1"

    def read(_: KafkaSink, letters: DeadLetters, __: Progress) -> None:
        letters.take(given(written([b"[", b"{"], own, source="payments")))

    monkeypatch.setattr(module, "read_dead_letters", read)
    progress = Says()
    assert export_dead_letters(config, progress)["payments"]["exported"] == 2
    assert progress.said[0].startswith("2 of the records are not in the live log of")


def test_a_topic_that_is_not_named_is_an_error(config: Configuration) -> None:
    with pytest.raises(ConfigurationError, match="add rejected"):
        export_dead_letters(replace(config, rejected=None), QuietProgress())
