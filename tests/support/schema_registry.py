"""A schema registry in the test's process, over real HTTP.

It implements those endpoints of Confluent's interface that a reader of messages uses, and answers
as that does: it is not that registry.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.certificates import Certificate


@dataclass
class SchemaRegistry:
    """What the registry knows, and how it behaves.

    Attributes:
        answers: Path to answer.
        paths: The paths that were asked for.
        user: Who may read, as ``user:password``; None for everybody.
        failures: How many of the next requests fail, and with what status.
        delay_s: How long an answer takes.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    user: str | None = None
    failures: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    url: str = ""

    def register(
        self,
        id: int,
        schema: str,
        kind: str | None = None,
        references: list[dict[str, Any]] | None = None,
        subject: tuple[str, int] | None = None,
        *,
        query: str = "",
    ) -> None:
        """Let an id, and a version of a subject, be a schema, as the query asks for it."""
        answer: dict[str, Any] = {"schema": schema}
        if kind is not None:
            answer["schemaType"] = kind
        if references:
            answer["references"] = references
        self.answers[f"/schemas/ids/{id}{query}"] = answer
        if subject is not None:
            name, version = subject
            path = f"/subjects/{name}/versions/{version}{query}"
            self.answers[path] = answer | {"subject": name, "version": version, "id": id}


@contextmanager
def schema_registry(certificate: Certificate | None = None) -> Iterator[SchemaRegistry]:
    """Run a registry; with a certificate, over TLS."""
    registry = SchemaRegistry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.paths.append(self.path)
            time.sleep(registry.delay_s)
            status, answer = self._answer()
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            if status in (301, 302):
                self.send_header("Location", registry.url + "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def _answer(self) -> tuple[int, Any]:
            if registry.failures:
                return registry.failures.pop(0), {"error_code": 50001, "message": "no"}
            if registry.user is not None:
                expected = base64.b64encode(registry.user.encode()).decode()
                if self.headers.get("Authorization") != f"Basic {expected}":
                    return 401, {"error_code": 401, "message": "Unauthorized"}
            if self.path in registry.answers:
                return 200, registry.answers[self.path]
            if self.path.startswith("/schemas/ids/"):
                if int(self.path.removeprefix("/schemas/ids/").partition("?")[0]) >= 2**31:
                    # The path has no number that the server could read.
                    return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}
                return 404, {"error_code": 40403, "message": "Schema not found"}
            if self.path.startswith("/subjects/"):
                return 404, {"error_code": 40401, "message": "Subject not found"}
            return 404, b"<html>not found</html>"

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scheme = "http"
    if certificate is not None:
        scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    registry.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
