"""What is said to Dataflow's service, and what is made of its answers; a stand-in answers.

The stand-in (`tests.support.dataflow_service`) is asked by Google's own client libraries, over
HTTP. No job runs in these tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apache_beam as beam
import pytest

from tests.support.dataflow_service import PROJECT, REGION, DataflowService, ServedJob
from tidemill.features.errors import (
    DamagedState,
    EngineLost,
    JobRefused,
    NoSpace,
    ServiceUnreachable,
    WorkerLacksModule,
    WrongBeamFlag,
)
from tidemill.pipelines.engines import dataflow_jobs, dataflow_run
from tidemill.pipelines.engines.choosing import named_errors
from tidemill.pipelines.engines.dataflow import dataflow_options
from tidemill.pipelines.engines.dataflow_flags import DataflowPlace, read_flags
from tidemill.pipelines.engines.dataflow_jobs import end_job, end_jobs, record_job
from tidemill.pipelines.engines.dataflow_run import (
    DataflowRun,
    check_service,
    submitted_pipeline,
    worker_error,
)
from tidemill.pipelines.engines.dataflow_service import Service, said
from tidemill.pipelines.io.attempts import Attempt


@pytest.fixture
def service(service: DataflowService, monkeypatch: pytest.MonkeyPatch) -> DataflowService:
    monkeypatch.setattr(dataflow_run, "_ASK_S", 0.05)
    monkeypatch.setattr(dataflow_run, "_LATER_S", (0.0, 0.0))
    monkeypatch.setattr(dataflow_jobs, "_LOOK_S", 0.05)
    return service


def place_of(service: DataflowService, *further: str) -> DataflowPlace:
    return read_flags([*service.flags[3:], *further])


@contextmanager
def attempted(folder: Path) -> Iterator[Attempt]:
    attempt = Attempt.below(folder)
    with attempt.submitted():
        yield attempt


def run_of(service: DataflowService, attempt: Attempt, *, has_heard: bool = True) -> DataflowRun:
    of = Service.of(place_of(service))
    return DataflowRun(of, attempt, f"tidemill-shop-stream-{attempt.name}", lambda: has_heard)


def submit(service: DataflowService, run: DataflowRun, attempt: Attempt) -> ServedJob:
    name = f"tidemill-shop-stream-{attempt.name}"
    options = dataflow_options(
        place_of(service), name, streaming=True, operators=1, has_accelerator=False,
        is_submitted=True,
    )  # fmt: skip
    pipeline = submitted_pipeline(options)
    _ = pipeline | beam.Impulse()
    run.submit(pipeline)
    (job,) = service.jobs.values()
    assert job.made["name"] == name
    return job


def never() -> bool:
    return False


def after(count: int) -> Callable[[], bool]:
    """Return what is true when it is asked for the time after so many."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None


# Submitting.


def test_a_job_is_recorded_before_it_is_created_and_ended_when_it_is_over(
    service: DataflowService, tmp_path: Path
) -> None:
    with attempted(tmp_path) as attempt:
        job = submit(service, run_of(service, attempt), attempt)
        record = json.loads(attempt.job.read_text())
        assert record == {
            "engine": "dataflow", "project": PROJECT, "region": REGION, "id": job.id,
            "name": job.made["name"], "access": [f"--dataflow_endpoint={service.url}", "--no_auth"],
        }  # fmt: skip
        environment = job.made["environment"]
        assert "no_use_multiple_sdk_containers" in environment["experiments"]
        (pool,) = environment["workerPools"]
        assert pool["autoscalingSettings"]["algorithm"] in (1, "AUTOSCALING_ALGORITHM_NONE")
        assert (pool["numWorkers"], pool["autoscalingSettings"]["maxNumWorkers"]) == (1, 1)
        end_job(attempt)
        assert job.state == "JOB_STATE_CANCELLED"
        assert not attempt.folder.exists()


@pytest.mark.parametrize("status", [400, 403, 404])
def test_what_the_service_refuses_is_one_error_with_what_it_says(
    status: int, service: DataflowService, tmp_path: Path
) -> None:
    service.refusals.append((status, False))
    with attempted(tmp_path) as attempt:
        with pytest.raises(JobRefused, match=f"does not take the job: .*refused with {status}"):
            submit(service, run_of(service, attempt), attempt)
        end_job(attempt)  # at once: there is nothing to wait for
    assert not service.jobs


def test_a_quota_that_is_used_up_for_a_moment_is_waited_for_and_then_an_error(
    service: DataflowService, tmp_path: Path
) -> None:
    service.refusals.extend([(429, False)] * 2)
    with attempted(tmp_path) as attempt:
        submit(service, run_of(service, attempt), attempt)
    service.jobs.clear()
    service.refusals.extend([(429, False)] * 3)
    with attempted(tmp_path) as attempt, pytest.raises(JobRefused, match="refused with 429"):
        submit(service, run_of(service, attempt), attempt)


@pytest.mark.parametrize("status", [409, 500])
def test_a_job_is_created_once_though_the_answer_was_an_error(
    status: int, service: DataflowService, tmp_path: Path
) -> None:
    service.refusals.append((status, True))
    with attempted(tmp_path) as attempt:
        job = submit(service, run_of(service, attempt), attempt)
        assert json.loads(attempt.job.read_text())["id"] == job.id


def test_a_bucket_that_is_not_there_is_named_before_anything_is_begun(
    service: DataflowService,
) -> None:
    with pytest.raises(JobRefused, match=r"no files through gs://other-bucket: .*does not exist"):
        check_service(place_of(service, "--staging_location=gs://other-bucket/staging"))


def test_a_service_that_does_not_let_us_look_is_named_before_anything_is_begun(
    service: DataflowService,
) -> None:
    check_service(place_of(service))
    flags = [flag for flag in service.flags[3:] if "--project" not in flag]
    with pytest.raises(JobRefused, match=r"project other-project, .* lacks permission"):
        check_service(read_flags([*flags, "--project=other-project"]))
    service.is_away = True
    with pytest.raises(ServiceUnreachable, match="the service is away"):
        check_service(place_of(service))
    with pytest.raises(ServiceUnreachable, match="does not list jobs"):
        check_service(read_flags([*flags, "--project=some-project", "--no_auth",
                                  "--dataflow_endpoint=http://localhost:1"]))  # fmt: skip


def test_flags_are_checked_before_a_job_is_made(service: DataflowService) -> None:
    with pytest.raises(WrongBeamFlag, match="Beam does not know --subnetwrk"):
        submitted_pipeline(["--subnetwrk=x"])
    with pytest.raises(WrongBeamFlag, match="has a user or password"):
        read_flags([*service.flags[3:], "--dataflow_endpoint=http://me:secret@localhost:1"])
    with pytest.raises(WrongBeamFlag, match="--max_num_workers=3: a stream keeps the workers"):
        dataflow_options(
            place_of(service, "--max_num_workers=3"), "x", streaming=True, operators=1,
            has_accelerator=False, is_submitted=True,
        )  # fmt: skip


# Watching.


def test_a_service_that_is_away_for_a_while_changes_nothing(
    service: DataflowService, tmp_path: Path
) -> None:
    with attempted(tmp_path) as attempt:
        run = run_of(service, attempt)
        submit(service, run, attempt)
        service.is_away = True
        asked = len(service.requests)
        run.wait(lambda: len(service.requests) > asked + 5)
        service.is_away = False
        asked = len(service.requests)
        run.wait(lambda: len(service.requests) > asked + 5)
        end_job(attempt)


def test_a_service_that_stays_away_has_lost_the_job(
    service: DataflowService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataflow_run, "_SILENT_S", 0.2)
    monkeypatch.setattr(dataflow_jobs, "_OVER_S", 0.2)
    with attempted(tmp_path) as attempt:
        run = run_of(service, attempt)
        job = submit(service, run, attempt)
        service.is_away = True
        with pytest.raises(EngineLost, match="the service has said nothing of the job"):
            run.wait(never)
        with pytest.raises(ServiceUnreachable, match=f"may still run .* cancel {job.id} --region"):
            end_job(attempt)
        assert attempt.folder.exists()
    service.is_away = False
    monkeypatch.setattr(dataflow_jobs, "_OVER_S", 60.0)
    end_jobs(tmp_path)
    assert job.state == "JOB_STATE_CANCELLED"
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_the_service_does_not_know_any_more_is_lost(
    service: DataflowService, tmp_path: Path
) -> None:
    with attempted(tmp_path) as attempt:
        run = run_of(service, attempt)
        job = submit(service, run, attempt)
        run.wait(after(5))
        service.lose(job)
        with pytest.raises(EngineLost, match=r"does not know the job .* any more"):
            run.wait(never)
        end_job(attempt)


@pytest.mark.parametrize("has_heard", [True, False])
def test_a_job_that_fails_before_any_worker_has_begun_is_refused_and_else_lost(
    has_heard: bool, service: DataflowService, tmp_path: Path
) -> None:
    with attempted(tmp_path) as attempt:
        run = run_of(service, attempt, has_heard=has_heard)
        job = submit(service, run, attempt)
        job.messages.append("Workflow failed. Causes: quota 'CPUS' exceeded")
        job.state = "JOB_STATE_FAILED"
        error, begins = (EngineLost, "") if has_heard else (JobRefused, "no worker of it has begun")
        with pytest.raises(error, match=f"is FAILED: Workflow failed. Causes: quota.*{begins}"):
            run.wait(never)
        end_job(attempt)


FULL = """Error message from worker: generic::unknown: Traceback (most recent call last):
  File "sdk_worker.py", line 312, in _execute
    response = task()
tidemill.features.errors.NoSpace: the disk of /tmp is full [while running 'Shard-ptransform-5']
"""


def test_an_error_of_a_worker_that_the_service_tells_is_raised_by_name(
    service: DataflowService, tmp_path: Path
) -> None:
    with attempted(tmp_path) as attempt:
        run = run_of(service, attempt)
        job = submit(service, run, attempt)
        job.messages.append("The worker lost contact with the service.")
        run.wait(after(5))
        job.messages.append(FULL)
        with pytest.raises(NoSpace, match=r"^the disk of /tmp is full\n"), named_errors():
            run.wait(never)
        end_job(attempt)


def test_an_image_without_the_project_is_named() -> None:
    text = f"{FULL.splitlines()[0]}\nModuleNotFoundError: No module named 'shop'\n"
    found = worker_error(text)
    assert isinstance(found, WorkerLacksModule)
    assert "No module named 'shop'; let --sdk_container_image have" in str(found)
    assert worker_error("the machine was lost") is None
    assert worker_error(f"{FULL.splitlines()[0]}\nRuntimeError: Channel closed\n") is None


# Ending.


def test_a_job_whose_program_was_killed_before_it_knew_its_id_is_found_by_name(
    service: DataflowService, tmp_path: Path
) -> None:
    with attempted(tmp_path) as attempt:
        job = submit(service, run_of(service, attempt), attempt)
        record_job(attempt, Service.of(place_of(service)), job.made["name"])
    end_jobs(tmp_path)
    assert job.state == "JOB_STATE_CANCELLED"
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_was_just_asked_for_may_appear_later(
    service: DataflowService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataflow_jobs, "_APPEARS_S", 0.5)
    with attempted(tmp_path) as attempt:
        record_job(attempt, Service.of(place_of(service)), "tidemill-shop-stream-1")
        end_job(attempt)
    assert len([one for one in service.requests if one.endswith("/jobs")]) > 1


def test_a_record_that_names_no_job_is_damaged(tmp_path: Path) -> None:
    with attempted(tmp_path) as attempt:
        attempt.job.write_text('{"engine": "dataflow"}')
    with pytest.raises(DamagedState, match=r"does not name a job .* cancel it yourself"):
        end_jobs(tmp_path)


def test_what_google_says_is_shown_without_secrets() -> None:
    assert said(ValueError("no:\n  Bearer ya29.abc key=AIza1 end")) == "no: Bearer... key=... end"
