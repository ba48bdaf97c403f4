"""Jobs for Dataflow, translated by a dry run: their steps, their options, and what is refused.

No test talks to Google: what is asserted is what Beam would send.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.exports import contents
from tests.support.translated import (
    ACCELERATOR,
    FLAGS,
    dataflow,
    parcels_root,
    translate_elsewhere,
    with_accelerator,
)
from tidemill.features.errors import RootNotShared, WrongBeamFlag
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import Engine, EngineChoice
from tidemill.pipelines.engines.dataflow import GRAPH, JOB
from tidemill.pipelines.engines.dataflow_flags import read_flags
from tidemill.pipelines.engines.job_steps import JobStep
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.exchanged import local_places
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.stream_run.translation import STEPS, StreamJobSteps, translate_stream
from tidemill.serving.stores.online_places import OnlinePlace, SqlitePlace
from tidemill.serving.stores.redis_place import RedisPlace

GOLDEN = Path(__file__).with_name("dataflow_steps.json")
"""The steps of a stream's job. Whoever changes one decides that running jobs cannot be updated."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return parcels_root(tmp_path_factory.mktemp("parcels"))


def as_json(steps: StreamJobSteps) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(json.dumps([asdict(one) for one in steps.steps]))
    return found


# Steps.


def test_steps_have_the_names_the_states_and_the_payloads_of_the_golden_file(
    config: Configuration,
) -> None:
    _, steps = translate_stream(with_accelerator(config), dataflow())
    assert as_json(steps) == json.loads(GOLDEN.read_text())
    for one in steps.steps:
        assert not set("(<>") & set(one.name), f"Beam has made up the name {one.name!r}"


def test_another_process_translates_to_the_same_bytes_and_nothing_is_changed(
    config: Configuration, tmp_path: Path
) -> None:
    before = contents(config.root)
    translation, steps = translate_stream(with_accelerator(config), dataflow())
    translation.write(tmp_path / "here")
    steps.write(tmp_path / "here")
    translate_elsewhere(config.root, tmp_path / "there")
    for name in (JOB, GRAPH, STEPS):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert contents(config.root) == before


def test_only_inference_asks_for_an_accelerator_and_memory(config: Configuration) -> None:
    translation, steps = translate_stream(with_accelerator(config), dataflow())
    hints = {one.name: dict(one.hints) for one in steps.steps if one.hints}
    assert hints == {"Infer/Infer": {"accelerator": ACCELERATOR, "min_ram_bytes": "8000000000"}}
    found = translation.graph.components
    asking = [one for one in found.environments.values() if one.resource_hints]
    assert len(asking) == 1
    assert "no_use_multiple_sdk_containers" in translation.job["environment"]["experiments"]
    without, steps = translate_stream(config, dataflow())
    assert not any(one.hints for one in steps.steps)
    assert not any(one.resource_hints for one in without.graph.components.environments.values())
    assert "no_use_multiple_sdk_containers" not in without.job["environment"]["experiments"]


# The job.


def test_a_job_streams_with_streaming_engine_in_our_image(config: Configuration) -> None:
    translation, _ = translate_stream(config, dataflow([*FLAGS, "--max_num_workers=3"]))
    job, image = translation.job, FLAGS[3].partition("=")[2]
    assert (job["name"], job["type"]) == ("tidemill-parcels-stream", "JOB_TYPE_STREAMING")
    experiments = job["environment"]["experiments"]
    assert {"enable_streaming_engine", "enable_windmill_service", "use_runner_v2"} <= {*experiments}
    (pool,) = job["environment"]["workerPools"]
    assert {one["containerImage"] for one in pool["sdkHarnessContainerImages"]} == {image}
    assert (pool["numWorkers"], pool["autoscalingSettings"]["maxNumWorkers"]) == (1, 3)
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert options["save_main_session"] is False
    assert options["streaming"] is True
    assert not options["dataflow_service_options"]
    assert options["max_cache_memory_usage_mb"] == 0
    for environment in translation.graph.components.environments.values():
        assert not environment.dependencies, "a file of this machine is in the job"


def test_by_default_there_are_as_many_workers_as_operators(config: Configuration) -> None:
    (pool,) = translate_stream(config, dataflow())[0].job["environment"]["workerPools"]
    assert pool["autoscalingSettings"]["maxNumWorkers"] == config.shards


def test_flags_that_nothing_here_reads_go_to_beam(config: Configuration) -> None:
    flags = [*FLAGS, "--subnetwork=regions/europe-west4/subnetworks/own", "--job_name=mine"]
    job = translate_stream(config, dataflow(flags))[0].job
    assert job["name"] == "mine"
    assert job["environment"]["workerPools"][0]["subnetwork"].endswith("/own")


@dataclass(frozen=True)
class Live(Configuration):
    """A configuration one of whose sources goes on in a topic, which nobody is asked for."""

    @property
    def is_live(self) -> bool:
        return True


def test_a_live_stream_follows_its_poll_log(config: Configuration) -> None:
    live = Live(**{one.name: getattr(config, one.name) for one in fields(config)})
    before = contents(config.root)
    _, replayed = translate_stream(config, dataflow())
    _, followed = translate_stream(live, dataflow())
    names = {one.name for one in followed.steps}
    assert {one.name for one in replayed.steps} - names == {
        "Replay/Start/Impulse", "Replay/Start/Emit", "Replay/Read",
    }  # fmt: skip
    assert names - {one.name for one in replayed.steps} == {
        "Live/Start/Impulse", "Live/Start/Emit", "Live/Follow/Follow", "CountUnreadable",
        "WriteUnreadable",
    }  # fmt: skip
    assert contents(config.root) == before


# What is refused.


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--subnetwrk=x", "Beam does not know --subnetwrk: did you mean 'subnetwork'"),
        ("--experiments=x", None),
        ("--dataflow_endpoint=not a url", "Beam refuses the flags: "),
    ],
)
def test_beam_must_know_a_flag_and_take_it(
    flag: str, why: str | None, config: Configuration
) -> None:
    if why is None:
        assert (
            "x"
            in translate_stream(config, dataflow([*FLAGS, flag]))[0].job["environment"][
                "experiments"
            ]
        )
        return
    with pytest.raises(WrongBeamFlag, match=why):
        translate_stream(config, dataflow([*FLAGS, flag]))


def test_a_job_is_not_submitted_whose_workers_do_not_find_the_root(config: Configuration) -> None:
    before = contents(config.root)
    with pytest.raises(
        RootNotShared, match=r"stream.exchange is not set; name .*; the online store, .*online.db, "
    ) as e:
        stream(config, QuietProgress(), engine="dataflow", beam_flags=FLAGS)
    assert str(config.root) in str(e.value)
    assert "--translate FOLDER" in str(e.value)
    assert contents(config.root) == before


REDIS = RedisPlace(host="redis.example")


@pytest.mark.parametrize(
    ("exchange", "store", "why"),
    [
        ("gs://bucket/tidemill", REDIS, None),
        ("s3://bucket/tidemill?region=eu-west-1", REDIS, None),
        ("s3://bucket/t?endpoint_override=storage.example:9000", REDIS, None),
        (None, REDIS, "stream.exchange is not set"),
        ("file:///mnt/shared", REDIS, "file:///mnt/shared, is of this machine"),
        ("s3://b/t?endpoint_override=127.0.0.1:9000", REDIS, "s3://b/t, is of this machine"),
        ("gs://b/t?endpoint_override=http://localhost:9", REDIS, "gs://b/t, is of this machine"),
        ("gs://bucket/t", RedisPlace(), "localhost:6379, is of this machine"),
        (
            "gs://bucket/t",
            SqlitePlace(Path("/o.db")),
            "/o.db, is a file; let it be Redis",
        ),
    ],
)
def test_what_workers_do_not_find_is_named_with_what_to_set(
    exchange: str | None, store: OnlinePlace, why: str | None, config: Configuration
) -> None:
    meets = replace(config, online_store=store, stream=replace(config.stream, exchange=exchange))
    found = local_places(meets, is_here=False)
    if why is None:
        assert found == []
        return
    (said,) = found
    assert why in said
    # A service on this machine, as in tests, has workers that reach its addresses.
    is_never_reached = exchange is None or isinstance(store, SqlitePlace)
    assert bool(local_places(meets, is_here=True)) == is_never_reached


def test_a_service_on_this_machine_is_known_by_its_endpoint() -> None:
    assert not read_flags(FLAGS).is_here
    for endpoint, is_here in (
        ("http://localhost:80", True), ("127.0.0.1:8080", True),
        ("https://dataflow.googleapis.com", False), ("http://localhost.example", False),
    ):  # fmt: skip
        assert read_flags([*FLAGS, f"--dataflow_endpoint={endpoint}"]).is_here == is_here


@pytest.mark.parametrize("missing", range(len(FLAGS)))
def test_a_flag_that_is_missing_is_named_with_what_it_is(missing: int) -> None:
    flags = [flag for place, flag in enumerate(FLAGS) if place != missing]
    name = FLAGS[missing].partition("=")[0]
    with pytest.raises(WrongBeamFlag, match=rf"needs further flags after --: {name} \("):
        read_flags(flags)


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--runner=DirectRunner", "the engine is named by --engine"),
        ("--streaming", "a stream is one"),
        ("--save_main_session", "workers import the project"),
        ("--no_save_main_session", "workers import the project|as --save_main_session"),
        ("--setup_file=./setup.py", "from their image"),
        ("--requirements_file=r.txt", "from their image"),
        ("--resource_hint=min_ram=8GB", "it would ask the same of all workers"),
        ("--dataflow_service_options=streaming_mode_at_least_once", "for exactly-once"),
        ("--dataflow_service_options=a,streaming_mode_at_least_once", "for exactly-once"),
        ("--update", "a stream goes on in a job of its own"),
        ("--autoscaling_algorithm=NONE", "a stream keeps the workers"),
        ("--template_location=gs://b/t", "submits its job itself"),
        ("--dry_run=True", "--translate FOLDER"),
        ("--num_workers=0", "give 1 or more"),
        ("--num_workers=3", None),
        ("--max_num_workers=0", "give 1 or more"),
        ("--num_workers=two", "invalid int value"),
        ("region=x", "no flag of Beam"),
        ("--project=12", "expected one such as some-project"),
        ("--temp_location=/tmp/x", "expected one such as gs://BUCKET/temp"),
        ("--staging_location=gs://x", "expected one such as gs://BUCKET/staging"),
        ("--job_name=Mine_", "expected one such as tidemill-shop-stream"),
    ],
)
def test_a_flag_that_would_break_a_promise_is_refused(flag: str, why: str | None) -> None:
    if why is None:
        assert read_flags([*FLAGS, flag]).workers == 3
        return
    with pytest.raises(WrongBeamFlag, match=why):
        read_flags([*FLAGS, flag])


def test_a_place_goes_with_dataflow_and_with_no_other_engine() -> None:
    with pytest.raises(ValueError, match="give the place with the engine 'dataflow'"):
        EngineChoice(Engine.DATAFLOW, "", True)
    assert dataflow().has_workers


def test_steps_are_read_as_they_were_written(config: Configuration, tmp_path: Path) -> None:
    _, steps = translate_stream(config, dataflow())
    steps.write(tmp_path)
    assert StreamJobSteps.read(tmp_path) == steps
    assert all(isinstance(one, JobStep) for one in steps.steps)
