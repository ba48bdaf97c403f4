"""Bundles that are promoted while a stream runs, on a real broker, with kills in between."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support import fork_server
from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.scored_project import give_model, train_another
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.promotion_record import PromotionRecord
from tidemill.serving.models.tensorflow_start import load_tensorflow

SWAPS = int(os.environ.get("TIDEMILL_TEST_SWAPS", "6"))
"""How many; more than CI has time for, if somebody asks."""


@pytest.fixture(scope="module")
def trained(broker: TestBroker, tmp_path_factory: pytest.TempPathFactory) -> LiveProject:
    """A project with two bundles, whose stream has not begun."""
    project = LiveProject(tmp_path_factory.mktemp("promoted"), broker, savepoint_every="3s")
    give_model(project)
    project.run("backfill")
    for seed in (1, 2):
        train_another(project, seed)
    return project


def _bundles(project: LiveProject) -> list[str]:
    folder = project.folder / "run" / "bundles"
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


def _refused(project: LiveProject, *arguments: str) -> str:
    done = fork_server.run_command(arguments, project.folder, 120)
    assert done.status == 1, done.printed
    return done.printed


def _models(project: LiveProject) -> list[tuple[str, list[int]]]:
    run = StreamRun.read(stream_of(project.folder / "run"))
    assert run is not None
    return [(str(made["bundle"]), list(made["positions"])) for made in run.models or ()]


def test_swaps_under_load_with_kills_in_between_are_proven(trained: LiveProject) -> None:
    project, (one, other) = trained, _bundles(trained)
    printed = project.run("promote", one)
    assert f"bundle {one} is live: it scores from the next start" in printed
    ended = threading.Event()

    def produce() -> None:
        while not ended.wait(0.2):
            project.produce(6, 4)

    producer = threading.Thread(target=produce)
    producer.start()
    process = project.start_stream()
    took = []
    try:
        project.wait_for(10, process)
        live = one
        for number in range(SWAPS):
            live = other if live == one else one
            asked_us = time.time_ns() // 1_000
            command = ("rollback",) if number % 3 == 2 else ("promote", live)
            printed = project.run(*command)
            assert f"bundle {live} scores from positions" in printed
            record = PromotionRecord.read(stream_of(project.folder / "run"))
            assert record is not None
            assert record.bundle == live
            took.append((record.at_us - asked_us) / 1e6)
            answered = len(project.predictions())
            if number % 3 == 1:
                process.send_signal(signal.SIGKILL)
                process.wait()
                process = project.start_stream("--resume")
            project.wait_for(answered + 20, process)
        ended.set()
        producer.join()
        project.wait_for(project.sent["checks"], process)
        project.drain(process)
    finally:
        ended.set()
        producer.join()
        if process.poll() is None:
            process.kill()
            print(project.log()[-8_000:])
    print(f"swaps took {np.round(took, 2)} s")
    assert project.verify() == 4 * project.sent["checks"]
    models = _models(project)
    assert len(models) == SWAPS + 1
    predictions = project.predictions()
    assert len(predictions) == project.sent["checks"]
    seen = set()
    for row in predictions:
        right = models[0][0]
        for bundle, positions in models[1:]:
            if row["position"] >= positions[row["partition"]]:
                right = bundle
        assert row["bundle_version"] == right
        seen.add(right)
    assert seen == {one, other}


def test_what_cannot_be_promoted_is_refused_and_changes_nothing(trained: LiveProject) -> None:
    project, (one, other) = trained, _bundles(trained)
    assert "there is no bundle 'b9' below" in _refused(project, "promote", "b9")
    assert "there is no bundle '../bundles'" in _refused(project, "promote", "../bundles")
    before = _models(project)
    live = before[-1][0]
    second = other if live == one else one
    saved = project.folder / "run" / "bundles" / second / "model" / "saved_model.pb"
    content = saved.read_bytes()
    with project.streaming("--resume") as process:
        project.produce(5, 5)
        project.wait_for(project.sent["checks"], process)
        # Damaged between the check of the command and that of the stream, which counts.
        saved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "saved_model.pb" in _refused(project, "promote", second)
        saved.write_bytes(content)
        project.produce(5, 5)
        project.wait_for(project.sent["checks"], process)
        assert f"bundle {live} scores already" in project.run("promote", live)
        project.drain(process)
    assert _models(project) == before
    assert project.verify() == 4 * project.sent["checks"]


def test_the_live_model_is_where_tensorflow_serving_looks(trained: LiveProject) -> None:
    tf = load_tensorflow()
    project, (one, other) = trained, _bundles(trained)
    for bundle in (one, other):
        project.run("promote", bundle)
        numbers = sorted(int(path.name) for path in (project.folder / "run" / "serving").iterdir())
        assert len(numbers) == 2
        assert numbers[1] == numbers[0] + 1
        newest = project.folder / "run" / "serving" / str(numbers[1])
        loaded = tf.saved_model.load(str(newest), tags=["serve"])
        inputs = {
            name: tf.zeros([3, spec.shape[1]], spec.dtype)
            for name, spec in loaded.signatures["serving_default"]
            .structured_input_signature[1]
            .items()
        }
        served = loaded.signatures["serving_default"](**inputs)["score"].numpy()
        folder = project.folder / "run" / "bundles" / bundle / "model"
        own = tf.saved_model.load(str(folder)).signatures["serving_default"](**inputs)["score"]
        assert served.tobytes() == own.numpy().tobytes()


def test_a_root_without_a_bundle_before_says_so(trained: LiveProject, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained.folder / "run", root)
    folder = stream_of(root)
    run = StreamRun.read(folder)
    assert run is not None
    (root / "bundles" / "current").write_text(_bundles(trained)[0] + "\n")
    only = [{"bundle": _bundles(trained)[0], "positions": [0, 0, 0]}]
    dataclasses.replace(run, models=only).write(folder)
    printed = _refused(trained, "rollback", "--root", str(root))
    assert "no other bundle than" in printed
    assert "tidemill promote VERSION" in printed
