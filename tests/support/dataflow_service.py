"""A stand-in for Dataflow's service and Google Cloud Storage, which really runs its jobs.

It speaks as much of both REST interfaces as Beam and Tidemill use: jobs (create, get, list, update
with a requested state) and their messages; buckets and resumable uploads. It takes the pipeline
from where the job says that it was staged, and gives it to a Prism of its own, whose workers are
those of a pool (`tests.support.elsewhere`). Like Dataflow it begins again what has failed, for ever
or, of a job in batch, four times; unlike Dataflow it begins the whole job again, and its workers'
states are lost with it.

It is a stand-in because Google's is not to be had without an account: what it accepts says nothing
about what Google's accepts.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.parse
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import google_crc32c
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import (
    beam_job_api_pb2,
    beam_job_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.job import utils

from tidemill.pipelines.engines.choosing import find_prism
from tidemill.pipelines.engines.prism import PrismServer
from tidemill.pipelines.engines.prism_options import NO_SDF_SPLIT
from tidemill.pipelines.engines.worker_code import IMPORTS
from tidemill.pipelines.servers.python_path import import_path

PROJECT: Final = "some-project"
REGION: Final = "europe-west4"
BUCKET: Final = "some-bucket"
_JOBS: Final = rf"/v1b3/projects/{PROJECT}/locations/{REGION}/jobs"
_ENDED: Final = frozenset(
    {beam_job_api_pb2.JobState.DONE, beam_job_api_pb2.JobState.FAILED,
     beam_job_api_pb2.JobState.CANCELLED, beam_job_api_pb2.JobState.STOPPED}
)  # fmt: skip
_STATES: Final = {5: "JOB_STATE_CANCELLED", 7: "JOB_STATE_DRAINING"}
_LOOK_S: Final = 0.1
_AGAIN_S: Final = 1.0
_BATCH_BEGINS: Final = 4


@dataclass
class ServedJob:
    """A job of the service.

    Attributes:
        made: The job as it was asked for.
        id: Its id.
        state: Its state.
        messages: What the service tells of it, as texts of errors.
        begun: How often it was begun.
    """

    made: dict[str, Any]
    id: str
    state: str = "JOB_STATE_PENDING"
    messages: list[str] = field(default_factory=list)
    begun: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def is_batch(self) -> bool:
        """Whether it is to end when its work is done, as a stream is not."""
        return self.made["type"] in (1, "JOB_TYPE_BATCH")

    def as_json(self) -> dict[str, Any]:
        kept = {key: self.made[key] for key in ("name", "type", "clientRequestId")}
        return {
            **kept, "id": self.id, "projectId": PROJECT, "location": REGION,
            "currentState": self.state,
        }  # fmt: skip


class DataflowService:
    """The service, and a storage with one bucket.

    Args:
        workers: ``HOST:PORT`` of the pool that starts workers; None to run no job.
        image: The folder of the project that workers import, beside what this process does.

    Attributes:
        jobs: Its jobs, by id.
        objects: The objects of the bucket.
        requests: What it was asked, such as ``POST /v1b3/...``.
        refusals: Answers to the next creations: a status, and whether the job is created all the
            same, and only the answer is an error.
        is_away: Whether it answers 503 to everything.
        answers: Is cleared to keep the answers to creations back.
    """

    def __init__(self, workers: str | None = None, image: Path | None = None) -> None:
        self.workers, self.image = workers, image
        self.jobs: dict[str, ServedJob] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refusals: deque[tuple[int, bool]] = deque()
        self.is_away = False
        self.answers = threading.Event()
        self.answers.set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address, as the option of Beam and the variable of the storage name it."""
        return f"http://localhost:{self._server.server_port}"

    @property
    def flags(self) -> list[str]:
        """The arguments with which a stream runs there."""
        return [
            "--engine", "dataflow", "--", f"--project={PROJECT}", f"--region={REGION}",
            f"--temp_location=gs://{BUCKET}/temp", "--sdk_container_image=images/shop:1",
            f"--dataflow_endpoint={self.url}", "--no_auth",
        ]  # fmt: skip

    def close(self) -> None:
        """End all jobs, and answer nothing more."""
        self.answers.set()
        for job in self.jobs.values():
            job.cancelled.set()
        for job in self.jobs.values():
            if job.thread is not None:
                job.thread.join()
        self._server.shutdown()
        self._server.server_close()

    def running(self) -> list[ServedJob]:
        """Return the jobs that run."""
        return [job for job in self.jobs.values() if job.state == "JOB_STATE_RUNNING"]

    def lose(self, job: ServedJob) -> None:
        """Know nothing of a job any more."""
        job.cancelled.set()
        del self.jobs[job.id]

    # What is asked.

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        """Answer a request: a status and a JSON value, or a status, nothing, and a place."""
        if self.is_away:
            return _error(503, "the service is away")
        if path.startswith(("/storage/", "/upload/")):
            return self._storage(method, path, query, body)
        if not path.startswith(_JOBS):
            return _error(403, f"(abc): Could not find {path}: caller lacks permission")
        job_id, _, further = path.removeprefix(_JOBS).removeprefix("/").partition("/")
        if method == "POST" and not job_id:
            return self._create(json.loads(body))
        if method == "GET" and not job_id:
            found = [
                job.as_json()
                for job in list(self.jobs.values())
                if query.get("name") in (None, job.made["name"])
            ]
            return 200, {"jobs": found}
        if (job := self.jobs.get(job_id)) is None:
            return _error(404, f"(abc): Information about job {job_id} could not be found")
        if method == "GET" and further == "messages":
            found = [
                {"id": f"{n}", "messageText": text, "messageImportance": "JOB_MESSAGE_ERROR"}
                for n, text in enumerate(job.messages)
            ]
            return 200, {"jobMessages": found}
        if method == "PUT":
            asked = json.loads(body)["requestedState"]
            assert _STATES.get(asked, asked) == "JOB_STATE_CANCELLED"
            self._cancel(job)
        return 200, job.as_json()

    def _create(self, made: dict[str, Any]) -> Any:
        status, is_created = self.refusals.popleft() if self.refusals else (200, True)
        if is_created:
            with self._lock:
                job = next(
                    (one for one in self.jobs.values()
                     if one.made["clientRequestId"] == made["clientRequestId"]), None,
                )  # fmt: skip
                if job is None:
                    if any(one.made["name"] == made["name"] for one in self.jobs.values()):
                        return _error(409, f"(abc): The job {made['name']} exists already")
                    job = ServedJob(made, f"2026-11-30_00_00_00-{len(self.requests)}")
                    self.jobs[job.id] = job
                    job.thread = threading.Thread(target=self._run, args=(job,), daemon=True)
                    job.thread.start()
            self.answers.wait()
        if status != 200:
            return _error(status, f"(abc): refused with {status}")
        return 200, job.as_json()

    def _cancel(self, job: ServedJob) -> None:
        if job.state in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            job.state = "JOB_STATE_CANCELLING"
            job.cancelled.set()

    # What is done.

    def _run(self, job: ServedJob) -> None:
        if self.workers is None:
            job.state = "JOB_STATE_RUNNING"
            job.cancelled.wait()
        while not job.cancelled.is_set():
            job.begun += 1
            server = PrismServer(find_prism())
            try:
                stub = server.start()
                prism_job = self._submit(job, stub)
                if not job.cancelled.is_set():
                    job.state = "JOB_STATE_RUNNING"
                request = beam_job_api_pb2.GetJobStateRequest(job_id=prism_job)
                state = None
                while not job.cancelled.wait(_LOOK_S) and state not in _ENDED:
                    state = stub.GetState(request).state
                if state == beam_job_api_pb2.JobState.DONE and job.is_batch:
                    job.state = "JOB_STATE_DONE"
                    return
            finally:
                server.stop()
                server.delete_log()
            if job.is_batch and job.begun == _BATCH_BEGINS:
                job.messages.append("Workflow failed. Causes: a work item has failed 4 times.")
                job.state = "JOB_STATE_FAILED"
                return
            job.cancelled.wait(_AGAIN_S)
        job.state = "JOB_STATE_CANCELLED"

    def _submit(self, job: ServedJob, stub: beam_job_api_pb2_grpc.JobServiceStub) -> str:
        options = job.made["environment"]["sdkPipelineOptions"]["options"]
        graph = beam_runner_api_pb2.Pipeline.FromString(
            self.objects[options["pipelineUrl"].removeprefix(f"gs://{BUCKET}/")]
        )
        assert self.workers is not None
        # Earlier tests of this process have put folders of other projects on its path.
        path = [*([] if self.image is None else [str(self.image)]), *import_path()]
        pool = beam_runner_api_pb2.ExternalPayload(
            endpoint=endpoints_pb2.ApiServiceDescriptor(url=self.workers),
            params={IMPORTS: json.dumps(path)},
        )
        for environment in graph.components.environments.values():
            assert environment.urn == "beam:env:docker:v1"
            environment.urn = "beam:env:external:v1"
            environment.payload = pool.SerializeToString()
        given = PipelineOptions(["--streaming", f"--experiments={NO_SDF_SPLIT}"]).get_all_options(
            drop_default=True
        )
        prepared = stub.Prepare(
            beam_job_api_pb2.PrepareJobRequest(
                job_name=job.made["name"],
                pipeline=graph,
                pipeline_options=utils.dict_to_struct(
                    {f"beam:option:{name}:v1": value for name, value in given.items()}
                ),
            )
        )
        run = beam_job_api_pb2.RunJobRequest(preparation_id=prepared.preparation_id)
        return str(stub.Run(run).job_id)

    def _storage(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        if method == "PUT":  # what a resumable upload brings, in one piece
            self.objects[query["name"]] = body
            crc32c = base64.b64encode(google_crc32c.Checksum(body).digest()).decode()
            size = str(len(body))
            return 200, {"bucket": BUCKET, "name": query["name"], "size": size, "crc32c": crc32c}
        if not re.match(rf"(/upload)?/storage/v1/b/{BUCKET}(/|$)", path):
            return _error(404, "The specified bucket does not exist.")
        if method == "POST":
            name = query.get("name") or json.loads(body)["name"]
            place = urllib.parse.urlencode({"name": name})
            return 200, {}, f"{self.url}{path}?{place}"
        name = urllib.parse.unquote(path.partition("/o/")[2])
        if not name:
            return 200, {"kind": "storage#bucket", "id": BUCKET, "name": BUCKET}
        if name not in self.objects:
            return _error(404, "No such object")
        return 200, {"bucket": BUCKET, "name": name}


def _error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"code": status, "message": message}}


def _handler(service: DataflowService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            service.requests.append(f"{self.command} {parts.path}")
            query = dict(urllib.parse.parse_qsl(parts.query))
            status, found, *place = service.answer(self.command, parts.path, query, body)
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for one in place:
                self.send_header("Location", one)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 - names of the base class

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
