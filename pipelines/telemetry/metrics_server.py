"""The pages ``/metrics`` and ``/healthz`` of a stream that runs."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tidemill.features.errors import ConfigurationError

_REQUEST_S: Final = 10.0
"""How long a request may take, in seconds."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Without it a stream that is restarted at once would find its own port taken.
    allow_reuse_address = True


class _Server6(_Server):
    address_family = socket.AF_INET6


@contextmanager
def serving(
    host: str,
    port: int,
    metrics: Callable[[str], tuple[bytes, str]],
    health: Callable[[], tuple[bool, Mapping[str, Any]]],
) -> Iterator[int]:
    """Serve the pages while the block runs.

    Args:
        host: The name or the address to listen on.
        port: The port; 0 chooses a free one.
        metrics: Returns a text and its type, given the types that the reader accepts.
        health: Returns whether the stream is well, and what to say of it.

    Yields:
        The port.

    Raises:
        ConfigurationError: The port is taken, or the address is not one of this machine.
    """

    class Pages(BaseHTTPRequestHandler):
        timeout = _REQUEST_S

        def do_GET(self) -> None:
            page = self.path.partition("?")[0]
            if page == "/metrics":
                self._answer(200, *metrics(self.headers.get("Accept", "")))
            elif page == "/healthz":
                is_well, said = health()
                content = json.dumps(said).encode() + b"\n"
                self._answer(200 if is_well else 503, content, "application/json")
            else:
                self._answer(404, b"/metrics and /healthz are here\n", "text/plain; charset=utf-8")

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: Prometheus asks every few seconds."""

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        server = (_Server6 if family == socket.AF_INET6 else _Server)((host, port), Pages)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"metrics.listen: cannot listen on {host}:{port} ({error}); end the program that "
            "listens there, or name another port"
        ) from error
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True, name="tidemill-metrics")
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
