"""What an update of a running job on Dataflow would keep: steps by name, states by view."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.builds import make_build
from tests.support.streaming_project import (
    CAB,
    PROJECT,
    WEATHER,
    ZONE,
    arrivals,
    configuration,
    random_rows,
)
from tests.support.streaming_project import START as BEGIN
from tests.support.translated import FLAGS, dataflow
from tidemill import FeatureView, count
from tidemill.features.contract import MINUTE
from tidemill.features.errors import DamagedState, InputError
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.engines.job_steps import JobStep
from tidemill.pipelines.engines.job_update import Fate, compare_steps
from tidemill.pipelines.stream_run.replacement import KEPT, compare
from tidemill.pipelines.stream_run.translation import STEPS, StreamJobSteps, translate_stream

OTHER = dataclasses.replace(ZONE, features={**ZONE.features, "trips_2m": count(over="2m")})
RENAMED = dataclasses.replace(ZONE, name="district")


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StreamJobSteps]:
    """The jobs of versions of a project, each of a root of its own."""
    versions = {
        "running": [CAB, ZONE, WEATHER],
        "reordered": [WEATHER, ZONE, CAB],
        "fewer": [CAB, WEATHER],
        "changed": [CAB, OTHER, WEATHER],
        "renamed": [CAB, RENAMED, WEATHER],
    }
    return {name: job(tmp_path_factory.mktemp(name), views) for name, views in versions.items()}


def job(root: Path, views: Sequence[FeatureView], shards: int = 2) -> StreamJobSteps:
    project = dataclasses.replace(PROJECT, views=tuple(views), label=None)
    cut = BEGIN + 5 * MINUTE
    config = configuration(root, project, cut, BEGIN + 12 * MINUTE, shards=shards)
    partitions = dict.fromkeys(("trips", "rain", "hails"), 1)
    make_build(config, arrivals(project, random_rows(1), partitions, random.Random(1)))
    return translate_stream(config, dataflow())[1]


@pytest.mark.parametrize("version", ["running", "reordered", "fewer", "changed", "renamed"])
def test_all_steps_map_whatever_the_views_are(
    version: str, translated: dict[str, StreamJobSteps]
) -> None:
    found = compare(translated["running"], translated[version])
    assert {one.before for one in found.update.steps} == {one.name for one in found.update.steps}
    assert found.update.keeps_all
    assert found.update.mapping == {}
    fates = {one.name: one.fate for one in found.update.steps}
    same = version == "running"
    assert (fates["Featurize/Operate/Operate"] is Fate.SAME) == same
    assert fates["Featurize/KeyByOperator"] is Fate.SAME


def test_states_are_kept_by_the_views_that_are_the_same(
    translated: dict[str, StreamJobSteps],
) -> None:
    def fates(before: str, after: str) -> dict[str, str]:
        found = compare(translated[before], translated[after])
        assert bool(found.obstacles) == any(one["fate"] != KEPT for one in found.views)
        return {one["view"]: one["fate"].partition(":")[0] for one in found.views}

    assert fates("running", "reordered") == {"cab": KEPT, "zone": KEPT, "weather": KEPT}
    assert fates("running", "fewer") == {"cab": KEPT, "zone": "gone", "weather": KEPT}
    assert fates("fewer", "running") == {"cab": KEPT, "weather": KEPT, "zone": "new"}
    assert fates("running", "changed")["zone"] == "another definition"
    renamed = fates("running", "renamed")
    assert (renamed["zone"], renamed["district"]) == ("gone", "new")


def test_other_shards_joiners_or_modes_are_obstacles(
    translated: dict[str, StreamJobSteps],
) -> None:
    running = translated["running"]
    other = dataclasses.replace(running, shards=4, joiners=2, mode="eager", request="other")
    assert [said.partition(" was ")[0] for said in compare(running, other).obstacles] == [
        "the request", "the number of shards", "the number of joiners", "the mode",
    ]  # fmt: skip


# Steps that another version of Tidemill names or makes otherwise.


def step(name: str, **changes: object) -> JobStep:
    plain = JobStep(name, "pardo", "a.Does", (), {"main": "bytes"}, {}, "", {}, "0")
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


STATEFUL = {"head": "bag of bytes"}


def fate(running: Sequence[JobStep], other: Sequence[JobStep]) -> list[tuple[str, str, Fate]]:
    return [(one.before, one.name, one.fate) for one in compare_steps(running, other).steps]


def test_a_step_that_was_renamed_is_mapped_if_it_is_the_only_one_like_it() -> None:
    running = [step("A", states=STATEFUL), step("B", does="b.Does")]
    other = [step("New", states=STATEFUL, payload="1"), step("B", does="b.Does")]
    assert fate(running, other) == [("B", "B", Fate.SAME), ("A", "New", Fate.OTHER_WORK)]
    assert compare_steps(running, other).mapping == {"A": "New"}
    twice = [*other, step("Newer", states=STATEFUL)]
    found = compare_steps(running, twice)
    assert not found.keeps_all
    assert found.mapping == {}
    assert fate(running, twice)[0] == ("A", "", Fate.GONE)


def test_a_step_does_not_map_to_one_with_another_coder_or_state() -> None:
    running = [step("A", states=STATEFUL)]
    for changed, why in (
        (step("A"), "state 'head': bag of bytes, now none"),
        (step("A", states={"head": "bag of varint"}), "state 'head': bag of bytes, now bag of va"),
        (step("A", states=STATEFUL, gives={"main": "varint"}), "output 'main': bytes, now varint"),
        (step("A", states=STATEFUL, restriction="x"), "restriction none, now x"),
    ):
        (found,) = compare_steps(running, [changed]).steps
        assert found.fate is Fate.OTHER_STATE
        assert found.why.startswith(why)
    added = [*running, step("B")]
    assert compare_steps(running, added).keeps_all
    assert not compare_steps(added, running).keeps_all


# What a person sees.


def test_steps_that_are_not_there_or_damaged_are_told(
    translated: dict[str, StreamJobSteps], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--translate FOLDER` has written"):
        StreamJobSteps.read(tmp_path)
    translated["running"].write(tmp_path)
    path = tmp_path / STEPS
    path.write_text(path.read_text().replace("Infer", "Other"))
    with pytest.raises(DamagedState, match="translate that version of the project again"):
        StreamJobSteps.read(tmp_path)


@pytest.mark.parametrize("arguments", [("--replaces", "x"), ("--translate", "x")])
def test_translations_are_for_dataflow_and_comparisons_are_of_translations(
    arguments: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["init", "shop"])
    monkeypatch.chdir(tmp_path / "shop")
    with pytest.raises(SystemExit) as left:
        main(["stream", "--engine", "fnapi", *arguments])
    assert left.value.code == 2
    expected = {"--replaces": "add --translate DIR", "--translate": "add --engine dataflow"}
    assert expected[arguments[0]] in capsys.readouterr().err


def test_the_command_writes_the_job_and_says_what_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tidemill.yaml").write_text(CONFIGURATION)
    root = tmp_path / "run"
    root.mkdir()
    job(root, [CAB, ZONE, WEATHER])
    monkeypatch.chdir(tmp_path)
    for further in ([], ["--replaces", "job"]):
        folder = "other" if further else "job"
        with pytest.raises(SystemExit) as left:
            main(["stream", "--translate", folder, *further, "--", *FLAGS])
        assert left.value.code == 0
    said = capsys.readouterr().out
    assert "other has the job; nothing was submitted" in said
    assert said.rstrip().endswith("with other/transform_name_mapping.json")
    assert json.loads((tmp_path / "other" / "transform_name_mapping.json").read_text()) == {}
    assert json.loads((tmp_path / "job" / "job.json").read_text())["type"] == "JOB_TYPE_STREAMING"


CONFIGURATION = """
project: tests.support.streaming_project:UNLABELLED
root: run
sources:
  trips: {files: [trips.csv]}
  rain: {files: [rain.csv]}
  hails: {files: [hails.csv]}
splits:
  train_until: 2020-09-13T12:30:40Z
  evaluate_until: 2020-09-13T12:31:40Z
  stream_until: 2020-09-13T12:38:40Z
online_store: {type: sqlite, path: online.db}
stream: {engine: dataflow}
"""
