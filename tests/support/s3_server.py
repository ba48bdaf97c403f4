"""An S3 server for tests: versitygw (`make s3`), with a folder behind it."""

from __future__ import annotations

import http.client
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support.markdown import ROOT
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.processes import await_answer

BINARY: Final = ROOT / ".tidemill" / "bin" / "versitygw"
BUCKET: Final = "exchange"
KINDS: Final = {
    "List": "LIST",
    "Head": "HEAD",
    "Get": "GET",
    "Put": "PUT",
    "CreateMultipart": "PUT",
    "UploadPart": "PUT",
    "CompleteMultipart": "PUT",
    "Delete": "DELETE",
}
"""What requests are counted as, by how the server's names of them begin."""
_REQUEST: Final = re.compile(rf" s3_({'|'.join(KINDS)})\w* ")
_STARTS_S: Final = 30.0


class S3Server:
    """A server, running or not.

    Args:
        folder: Where the objects and its log are.
        port: The port at which it listens.
        reached: The port at which its clients reach it; None for its own.
    """

    def __init__(self, folder: Path, port: int, reached: int | None = None) -> None:
        self.folder, self.port = folder, port
        self.reached = reached or port
        self._keys = secrets.token_hex(8), secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "objects" / BUCKET).mkdir(parents=True)
        (folder / "metadata").mkdir()
        self._access_log = folder / "access.log"

    @property
    def url(self) -> str:
        """The URL of its bucket, as a configuration names it."""
        options = f"endpoint_override={HOST}:{self.reached}&scheme=http&region=us-east-1"
        return f"s3://{BUCKET}/tidemill?{options}"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with the credentials."""
        access, secret = self._keys
        return {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}

    def objects(self) -> list[Path]:
        """Return the files behind the objects."""
        return [path for path in (self.folder / "objects" / BUCKET).rglob("*") if path.is_file()]

    def requests(self) -> Counter[str]:
        """Count the requests that it has answered, by kind."""
        found = map(_REQUEST.search, self._access_log.read_text(errors="replace").splitlines())
        return Counter(KINDS[one[1]] for one in found if one is not None)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert BINARY.exists(), f"{BINARY} is missing: run `make s3`"
        access, secret = self._keys
        command = [str(BINARY), "--access", access, "--secret", secret]
        command += [
            "--port",
            f"{HOST}:{self.port}",
            "--quiet",
            "--access-log",
            str(self._access_log),
            "posix",
            "--sidecar",
            str(self.folder / "metadata"),
        ]
        log, where = self.folder / "s3.log", f"on port {self.port}"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, str(self.folder / "objects")],
                cwd=self.folder,
                env={**os.environ},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._process = process
        await_answer(
            "versitygw", where, log, _STARTS_S, lambda: process.poll() is None, self._answers
        )

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=1)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except OSError:
            return False
        finally:
            connection.close()

    def revoke(self) -> None:
        """Let it take no credentials that it has taken before; it is started again."""
        self.kill()
        self._keys = secrets.token_hex(8), secrets.token_hex(16)
        self.start()

    def restore(self, environment: Mapping[str, str]) -> None:
        """Let it take credentials that it took before."""
        self.kill()
        self._keys = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        self.start()

    def delete_bucket(self) -> None:
        """Delete the bucket, and all that is in it."""
        folder = self.folder / "objects" / BUCKET
        while folder.exists():
            # What is written meanwhile is deleted, too.
            with suppress(OSError):
                shutil.rmtree(folder)

    def pause(self) -> None:
        """Let it stand still."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=30)
            self._process = None
