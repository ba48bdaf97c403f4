"""`tidemill reload`: a stream that runs takes over what needs no restart, and names the rest."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.memory_topics import MemoryTopics, TopicProject
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.reloading import LiveSettings, live_settings
from tidemill.pipelines.telemetry.settings_record import SettingsRecord, mailbox


def ask(generation: Path) -> int:
    return mailbox(generation).ask()


def asked(generation: Path) -> int:
    """The number of the newest request; 0 for none."""
    found = mailbox(generation).asked()
    return 0 if found is None else int(found["number"])


def edit(project: LiveProject, before: str, after: str) -> None:
    path = project.folder / "tidemill.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def standing(project: LiveProject) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(project.run("status", "--json"))
    return found


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_a_stream_takes_over_live_settings_and_names_the_others(
    tmp_path: Path, broker: TestBroker, engine: str
) -> None:
    project = LiveProject(tmp_path / "project", broker, savepoint_every="1h", engine=engine)
    project.run("backfill", "--publish")
    project.produce(20, 5)
    refused(project, "no stream of .* runs")
    with project.streaming() as process:
        project.wait_for(2, process)
        assert standing(project)["settings"] is None
        assert "nothing has changed" in project.run("reload")
        assert Savepoint.read(stream_of(project.folder / "run")) is None
        edit(project, "savepoint_every: 1h", "savepoint_every: 1s, poll_rows: 99")
        printed = project.run("reload").splitlines()
        assert printed == [
            "taken over  stream.savepoint_every: 1h -> 1s",
            "waits       stream.poll_rows: 4096 -> 99 (needs a restart)",
        ]
        while Savepoint.read(stream_of(project.folder / "run")) is None:
            project.produce(5, 1)
            assert process.poll() is None, project.log()
        settings = standing(project)["settings"]
        assert [one.split(":")[0] for one in settings["taken"]] == ["stream.savepoint_every"]
        assert [one.split(":")[0] for one in settings["waiting"]] == ["stream.poll_rows"]
        assert "a restart takes over stream.poll_rows" in project.run("status")
        edit(project, "poll_rows: 99", "poll_rows: many")
        refused(project, r"tidemill\.yaml:\d+: .*poll_rows")
        assert process.poll() is None
        # The file may be edited after the command has looked at it.
        number = ask(generation_of(project))
        answered = wait_for_answer(generation_of(project), number)
        assert "poll_rows" in answered.error
        edit(project, "poll_rows: many", "poll_rows: 99")
        assert "ConfigurationError" in standing(project)["settings"]["error"]
        assert "it has refused its file" in project.run("status")
        project.produce(5, 1)
        project.wait_for(3, process)
        project.drain(process)
    assert "taken over: stream.savepoint_every" in project.log()
    with project.streaming("--resume") as process:
        assert standing(project)["settings"] is None  # of a run before
        project.produce(10, 3)
        project.wait_for(5, process)
        assert "nothing has changed" in project.run("reload")
        project.drain(process)
    assert project.verify()


def generation_of(project: LiveProject) -> Path:
    return stream_of(project.folder / "run").parent


def wait_for_answer(generation: Path, number: int) -> SettingsRecord:
    deadline = time.monotonic() + 60
    while (found := SettingsRecord.read(generation)) is None or found.number < number:
        assert time.monotonic() < deadline
    return found


def refused(project: LiveProject, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        project.run("reload")


def test_a_request_is_answered_once_whoever_asks(tmp_path: Path) -> None:
    assert asked(tmp_path) == 0
    assert [ask(tmp_path), ask(tmp_path)] == [1, 2]
    SettingsRecord(7, "run", 1).write(tmp_path)
    assert ask(tmp_path) == 8


def built(folder: Path, patch: pytest.MonkeyPatch) -> Configuration:
    """Return the configuration of a root that has a build, and no stream."""
    topics = MemoryTopics()
    topics.install(patch)
    config = TopicProject(folder / "shop", topics).config()
    backfill(config, QuietProgress())
    return config


def test_a_request_that_comes_while_a_stream_starts_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = built(tmp_path, monkeypatch)
    generation = config.current.folder
    number = ask(generation)  # after the file was read, before the stream takes requests
    with live_settings(config, pytest.fail):
        assert wait_for_answer(generation, number).number == number
    with live_settings(config, pytest.fail):  # which is answered, and stays so
        time.sleep(1)
        found = SettingsRecord.read(generation)
    assert found is not None
    assert found.number == number
    assert ask(generation) == number + 1


def test_whoever_asks_is_answered_also_if_reading_again_fails_unforeseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = built(tmp_path, monkeypatch)

    def load(*_: object, **__: object) -> None:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr("tidemill.pipelines.stream_run.reloading.load", load)
    with live_settings(config, pytest.fail):
        for _ in range(2):
            number = ask(config.current.folder)
            answered = wait_for_answer(config.current.folder, number)
            assert answered.error == "RuntimeError: dictionary changed size during iteration"


def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    config = replace(
        TopicProject(tmp_path / "shop", MemoryTopics()).config(), path=tmp_path / "gone.yaml"
    )
    settings = LiveSettings(config)
    assert "gone.yaml" in settings.reload(3).error
    assert settings.config is config
