"""What an S3 server refuses, lacks or does not answer: each by its own error, at both ends."""

from __future__ import annotations

import http.server
import socketserver
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.met import WAIT_S, Keep, met, wait
from tests.support.s3_server import S3Server
from tidemill.features.errors import (
    ExchangeError,
    ExchangeRefused,
    ExchangeUnreachable,
    ExpiredCredentials,
    NoSuchBucket,
)
from tidemill.pipelines.engines.exit_status import error_of_status, exit_status
from tidemill.pipelines.io.exchange import journal
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.storage_errors import storage_error
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace, WorkerEnd
from tidemill.pipelines.servers.kafka_settings import HOST


def calls(url: str) -> dict[str, Callable[[], Any]]:
    """Everything that is asked of a storage, each by somebody who asks for the first time."""
    return {
        "put": lambda: Objects(url).put("a", b""),
        "get": lambda: Objects(url).get("a"),
        "names": lambda: Objects(url).names(),
        "remove": lambda: Objects(url).remove_folder("a"),
    }


ASKED = sorted(calls(""))


@pytest.mark.parametrize("call", ASKED)
@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_refused(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, wrong: str, call: str
) -> None:
    monkeypatch.setenv(wrong, "wrong")
    with pytest.raises(ExchangeRefused, match="correct the credentials of this process"):
        calls(s3.url)[call]()


@pytest.mark.parametrize("call", ASKED)
def test_a_bucket_that_is_not_there_is_named(s3: S3Server, call: str) -> None:
    url = s3.url.replace("s3://exchange/", "s3://other/")
    with pytest.raises(NoSuchBucket, match="make the bucket, or correct"):
        calls(url)[call]()


@pytest.mark.parametrize("call", ASKED)
def test_an_endpoint_that_does_not_answer_is_unreachable(s3: S3Server, call: str) -> None:
    s3.kill()
    with pytest.raises(ExchangeUnreachable):
        calls(s3.url)[call]()


class _Expired(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to a session token that has expired; versitygw has no such tokens."""

    def _answer(self) -> None:
        body = (
            b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
            b"<Message>The provided token has expired.</Message></Error>"
        )
        self.send_response(400)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("call", ASKED)
def test_credentials_that_have_expired_are_named(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "expired")
    with socketserver.ThreadingTCPServer((HOST, 0), _Expired) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"s3://bucket/a?endpoint_override={HOST}:{server.server_address[1]}&scheme=http"
            with pytest.raises(ExpiredCredentials, match="renew the credentials"):
                calls(f"{url}&region=us-east-1")[call]()
        finally:
            server.shutdown()


def test_a_folder_of_another_user_is_refused() -> None:
    error = storage_error("file:///mnt", "written", "[Errno 13] Permission denied: '/mnt/a'")
    assert isinstance(error, ExchangeRefused)


# In the middle of a run.


def fails(check: Callable[[], object], kind: type[ExchangeError]) -> None:
    found: BaseException | None = None
    deadline_s = time.monotonic() + WAIT_S
    while found is None and time.monotonic() < deadline_s:
        try:
            check()
            time.sleep(0.05)
        except ExchangeError as error:
            found = error
    assert type(found) is kind


@pytest.mark.parametrize(
    ("do", "kind"),
    [(S3Server.revoke, ExchangeRefused), (S3Server.delete_bucket, NoSuchBucket)],
    ids=["credentials revoked", "bucket deleted"],
)
def test_what_is_taken_away_while_a_job_runs_ends_both_by_name(
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    do: Callable[[S3Server], None],
    kind: type[ExchangeError],
) -> None:
    monkeypatch.setattr(journal, "REFUSED_S", 2.0)
    monkeypatch.setattr(journal, "_AGAIN_S", 0.1)
    with met(s3, tmp_path / "root", Keep()) as (program, worker):
        do(s3)
        fails(program.check, kind)
        fails(worker.polls().check, kind)
        fails(lambda: worker.hand_over("keep", [b"after"]), kind)


def test_credentials_that_are_refused_for_a_moment_stop_nothing(
    s3: S3Server, tmp_path: Path
) -> None:
    keep, keys = Keep(), s3.environment
    with met(s3, tmp_path / "root", keep) as (program, worker):
        s3.revoke()
        worker.hand_over("keep", [b"refused"])
        time.sleep(3)
        s3.restore(keys)
        worker.hand_over("keep", [b"after"])
        wait(lambda: keep.kept == [b"before", b"refused", b"after"], program)


def test_an_endpoint_that_is_away_and_comes_back_stops_nothing(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for longer than a storage may refuse."""
    monkeypatch.setattr(journal, "REFUSED_S", 1.0)
    keep = Keep()
    with met(s3, tmp_path / "root", keep) as (program, worker):
        s3.kill()
        worker.hand_over("keep", [b"away"])
        time.sleep(5)
        program.check()
        s3.start()
        wait(lambda: keep.kept == [b"before", b"away"], program)
        s3.pause()
        worker.hand_over("keep", [b"paused"])
        time.sleep(5)
        s3.resume()
        wait(lambda: keep.kept == [b"before", b"away", b"paused"], program)


def test_a_worker_that_reaches_another_storage_is_told_so(tmp_path: Path) -> None:
    place = ExchangePlace(f"file://{tmp_path}/not-mounted", str(tmp_path))
    worker = WorkerEnd(place)
    try:
        with pytest.raises(NoSuchBucket, match="another storage is reached, or none is mounted"):
            worker.join()
    finally:
        worker.close()


def test_an_exit_status_tells_the_program_why() -> None:
    for kind in (ExchangeRefused, ExchangeUnreachable, ExpiredCredentials, NoSuchBucket):
        error = error_of_status(exit_status(kind("why")), "s3://bucket/folder")
        assert type(error) is kind
        assert "s3://bucket/folder" in str(error)
    assert error_of_status(1, "") is None
    assert exit_status(ExchangeError("")) == 1
