"""A live stream seen from outside: while it runs, after kill -9, and after its end."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.waiting import wait_until
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.status.collect import collect

_SAMPLE = re.compile(r"^(tidemill_\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def page(address: str, name: str) -> str:
    with urllib.request.urlopen(f"http://{address}/{name}", timeout=60) as answer:
        return str(answer.read().decode())


def samples(address: str) -> dict[str, float]:
    return {name: float(value) for name, value in _SAMPLE.findall(page(address, "metrics"))}


def test_a_stream_that_runs_is_killed_and_goes_on(
    tmp_path: Path, broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = LiveProject(tmp_path / "project", broker, savepoint_every="2s")
    with (project.folder / "tidemill.yaml").open("a") as file:
        file.write('metrics: {listen: "127.0.0.1:0"}\nlogging: {format: json}\n')
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("project", None)
    config = load(project.folder / "tidemill.yaml")

    def status() -> dict[str, Any]:
        return collect(config).content()

    def lags() -> list[int]:
        return [one["lag"] for source in status()["sources"] for one in source["partitions"]]

    project.run("backfill")
    assert status()["stream"]["state"] == "never started"
    project.produce(60, 20)
    with project.streaming() as process:
        project.wait_for(20, process)
        project.send_raw("payments", [b"{", b"\xff", b"{"])
        wait_until(lambda: '"event": "rejected"' in project.log())
        wait_until(lambda: bool(status()["views"][0]["caught_up"]) and lags() == [0, 0, 0, 0])
        found = status()
        stream, (view,) = found["stream"], found["views"]
        assert (stream["state"], stream["pid"]) == ("running", process.pid)
        assert view["stale_s"] < 10
        assert view["waits_for"]["cause"] == "quiet"
        assert view["waits_for"]["source"] in ("payments", "checks")
        assert found["predictions"] == 20
        assert found["rejected"] == {
            "payments read broken_json": 2,
            "payments read invalid_utf8": 1,
        }
        exposed = samples(stream["listen"])
        assert exposed['tidemill_rows_read_total{source="payments"}'] == 63
        assert exposed['tidemill_rows_accepted_total{source="payments"}'] == 60
        assert exposed["tidemill_predictions_total"] == 20
        assert exposed["tidemill_freshness_event_to_prediction_seconds_count"] == 20
        assert exposed['tidemill_view_events_total{view="by_card"}'] == 60
        assert exposed['tidemill_view_frontier_lag_seconds{view="by_card"}'] < 10
        assert json.loads(page(stream["listen"], "healthz"))["run"] == stream["run"]
        process.kill()
        process.wait()
    found = status()
    assert found["stream"]["state"] == "killed"
    assert found["views"][0]["caught_up"] is False
    project.produce(10, 5)
    with project.streaming("--resume") as process:
        project.wait_for(25, process)
        wait_until(lambda: status()["stream"]["state"] == "running")
        again = status()["stream"]
        assert again["run"] != stream["run"]
        # It counts what it repeats, and nothing of what the killed process has counted.
        assert 5 <= samples(again["listen"])["tidemill_predictions_total"] <= 25
        project.drain(process)
    assert status()["stream"]["state"] == "stopped"
    printed = project.run("status")
    assert "resume with `tidemill stream --resume`" in " ".join(printed.split())
    lines = [json.loads(line) for line in project.log().splitlines()]
    assert {line["run"] for line in lines} == {stream["run"], again["run"]}
    assert {"start", "segment", "savepoint", "rejected", "drain", "end", "figures"} <= {
        line.get("event") for line in lines
    }
