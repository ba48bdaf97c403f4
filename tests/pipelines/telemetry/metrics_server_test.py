"""The pages of a stream: what they answer, and a port that is taken."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import pytest

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.exposition import FiguresCollector, current_gauges, exposed
from tidemill.pipelines.telemetry.figures import Figures
from tidemill.pipelines.telemetry.figures_files import GONE_S
from tidemill.pipelines.telemetry.metrics_server import serving


def some(_: str) -> tuple[bytes, str]:
    return b"tidemill_up 1\n", "text/plain"


def well() -> tuple[bool, Mapping[str, Any]]:
    return True, {"status": "running"}


def asked(port: int, page: str, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{page}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_pages_answer() -> None:
    with serving("127.0.0.1", 0, some, well) as port:
        assert asked(port, "/metrics") == (200, b"tidemill_up 1\n")
        assert asked(port, "/metrics?name=x") == (200, b"tidemill_up 1\n")
        assert asked(port, "/metrics", "HEAD") == (200, b"")
        assert asked(port, "/healthz") == (200, b'{"status": "running"}\n')
        assert asked(port, "/else")[0] == 404
        assert asked(port, "/metrics", "POST")[0] == 501
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60)


def test_a_stream_that_drains_is_not_well() -> None:
    with serving("127.0.0.1", 0, some, lambda: (False, {"status": "ending"})) as port:
        status, content = asked(port, "/healthz")
    assert (status, json.loads(content)) == (503, {"status": "ending"})


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=rf"metrics.listen: cannot .* 127.0.0.1:{port}"),
            serving("127.0.0.1", port, some, well),
        ):
            raise AssertionError("the port is taken")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"metrics\.listen"), serving(host, 0, some, well):
        raise AssertionError(host)


def test_a_port_can_be_used_again_at_once() -> None:
    with serving("127.0.0.1", 0, some, well) as port:
        asked(port, "/metrics")
    with serving("127.0.0.1", port, some, well) as again:
        assert again == port
        assert asked(port, "/metrics")[0] == 200


def test_addresses_of_version_six_are_served() -> None:
    with serving("::1", 0, some, well) as port:
        url = f"http://[::1]:{port}/metrics"
        assert urllib.request.urlopen(url, timeout=60).read() == b"tidemill_up 1\n"


def test_a_process_that_is_gone_keeps_its_counts_and_loses_its_gauges() -> None:
    now = time.time()
    alive, gone = Figures("r"), Figures("r", lambda: now - GONE_S - 1)
    alive.add(metrics.PREDICTIONS, 2)
    alive.set(metrics.FRONTIER, now - 5, "by_card", part="0")
    gone.add(metrics.PREDICTIONS, 3)
    gone.set(metrics.FRONTIER, now - 100, "by_card", part="1")
    collector = FiguresCollector(lambda: [alive.snapshot(), gone.snapshot()], dict, lambda: now)
    text, _ = exposed(collector, "")
    lines = text.decode().splitlines()
    assert "tidemill_predictions_total 5.0" in lines
    assert "tidemill_processes 1.0" in lines
    assert 'tidemill_view_frontier_lag_seconds{view="by_card"} 5.0' in lines


def test_the_lag_of_a_view_grows_while_nothing_is_reported() -> None:
    figures = Figures("r", lambda: 1_000.0)
    figures.set(metrics.FRONTIER, 990.0, "by_card", part="0")
    figures.set(metrics.WATERMARK, 995.0, "payments", "0")
    figures.set(metrics.WATERMARK, 991.0, "payments", "1")
    found = current_gauges([figures.snapshot()], 1_005.0)
    assert found[metrics.FRONTIER_LAG.name, ("by_card",)] == 15
    assert found[metrics.WATERMARK_LAG.name, ("payments",)] == 14
