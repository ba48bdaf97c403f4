"""The dashboard and the alert rules: names that exist, and rules that fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.markdown import DOCS, ROOT
from tests.support.prometheus_server import asked, program, prometheus
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.exposition import FiguresCollector, exposed
from tidemill.pipelines.telemetry.figures import Figures
from tidemill.pipelines.telemetry.metrics import METRICS
from tidemill.pipelines.telemetry.metrics_server import serving

FOLDER = ROOT / "pipelines" / "telemetry"
RULES = FOLDER / "prometheus" / "alerts.yaml"
DASHBOARD = FOLDER / "grafana" / "dashboard.json"
RULE_TESTS = Path(__file__).with_name("alerts_test.yaml")
_NAME = re.compile(r"\btidemill_\w+")
_SERIES = {
    series: metric
    for metric in METRICS
    for series in (
        [f"{metric.name}_{end}" for end in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}
"""The name of a series to its metric."""


def expressions(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        for key, value in found.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            yield from expressions(value)
    elif isinstance(found, list):
        for one in found:
            yield from expressions(one)


def of_dashboard() -> list[str]:
    return list(expressions(json.loads(DASHBOARD.read_text())))


def of_rules() -> list[str]:
    return list(expressions(yaml.safe_load(RULES.read_text())))


@pytest.mark.parametrize("found", [of_dashboard(), of_rules()], ids=["dashboard", "rules"])
def test_every_metric_in_the_files_exists(found: list[str]) -> None:
    names = {name for text in found for name in _NAME.findall(text)}
    assert len(names) > 10
    assert names - set(_SERIES) == set()


@pytest.mark.parametrize("found", [of_dashboard(), of_rules()], ids=["dashboard", "rules"])
def test_every_label_in_the_files_exists(found: list[str]) -> None:
    for text in found:
        names = {"instance", "job", *(["le"] if "_bucket" in text else [])}
        names |= {label for name in _NAME.findall(text) for label in _SERIES[name].labels}
        used = {
            label for group in re.findall(r"by \(([^)]*)\)", text) for label in group.split(", ")
        }
        used |= {
            label
            for group in re.findall(r"\{([^}]*)\}", text)
            for label in re.findall(r"(\w+)=", group)
        }
        assert used - names == set(), text


def test_the_dashboard_shows_every_metric() -> None:
    shown = {_SERIES[name].name for text in of_dashboard() for name in _NAME.findall(text)}
    assert {metric.name for metric in METRICS} - shown == set()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    rules = [one for group in yaml.safe_load(RULES.read_text())["groups"] for one in group["rules"]]
    tests = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    fired = {
        one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules}
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "action"}


def test_promtool_accepts_the_rules_and_they_fire_as_their_tests_say(tmp_path: Path) -> None:
    if (promtool := program("promtool")) is None:
        return
    for path in (RULES, RULE_TESTS):
        shutil.copy(path, tmp_path)
    for arguments in (["check", "rules", RULES.name], ["test", "rules", RULE_TESTS.name]):
        done = subprocess.run(
            [promtool, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def some_figures() -> Figures:
    """Return figures with a value of every metric that a process reports."""
    figures = Figures("run-1")
    for metric in METRICS:
        labels = [f'a "{label}"\n' for label in metric.labels]
        if metric.kind == "counter":
            figures.add(metric, 3, *labels)
        elif metric.kind == "gauge":
            figures.set(metric, 4, *labels)
        else:
            figures.observe(metric, [0.3, 20.0, 1e6], *labels)
    return figures


@pytest.mark.parametrize("accepts", ["", "application/openmetrics-text; version=1.0.0"])
def test_what_is_exposed_is_what_promtool_understands(accepts: str) -> None:
    figures = some_figures()
    text, kind = exposed(FiguresCollector(lambda: [figures.snapshot()], dict), accepts)
    found = set(re.findall(r"^(tidemill_\w+)[{ ]", text.decode(), re.MULTILINE))
    assert {name for name in found if not name.endswith("_created")} == set(_SERIES)
    assert ("openmetrics" in kind) == bool(accepts)
    if accepts or (promtool := program("promtool")) is None:
        return  # promtool reads the other format only
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == b""


def test_a_prometheus_reads_the_page_and_the_rules(tmp_path: Path) -> None:
    if (server := program("prometheus")) is None:
        return
    figures = Figures("run-1")
    figures.add(metrics.PREDICTIONS, 7)
    figures.set(metrics.FRONTIER, time.time() - 3_600, "by_card", part="0")
    collector = FiguresCollector(lambda: [figures.snapshot()], dict)
    pages = serving("127.0.0.1", 0, lambda accepts: exposed(collector, accepts), lambda: (True, {}))
    with pages as port:
        configuration = yaml.safe_dump(
            {
                "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
                "rule_files": [str(RULES)],
                "scrape_configs": [
                    {
                        "job_name": "tidemill",
                        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
                    }
                ],
            }
        )
        with prometheus(server, tmp_path / "prometheus", configuration) as at:
            deadline = time.monotonic() + 120
            while not asked(at, "query?query=tidemill_predictions_total")["result"]:
                assert time.monotonic() < deadline, asked(at, "targets")
                time.sleep(0.1)
            (target,) = asked(at, "targets")["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            (found,) = asked(at, "query?query=tidemill_predictions_total")["result"]
            assert found["value"][1] == "7"
            while not asked(at, "alerts")["alerts"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            (alert,) = asked(at, "alerts")["alerts"]
            # It has been stale for an hour; it fires when that has been seen for two minutes.
            assert (alert["labels"]["alertname"], alert["state"]) == (
                "TidemillViewStale",
                "pending",
            )
            (group,) = asked(at, "rules")["groups"]
            assert {rule["health"] for rule in group["rules"]} == {"ok"}


def test_the_page_of_documentation_has_every_metric_and_alert() -> None:
    page = (DOCS / "telemetry.md").read_text()
    rows = re.findall(
        r"^\| `(tidemill_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE
    )
    assert [(name, kind) for name, kind, _, _ in rows] == [(m.name, m.kind) for m in METRICS]
    for (_, _, labels, meaning), metric in zip(rows, METRICS, strict=True):
        assert labels.strip() == ", ".join(f"`{label}`" for label in metric.labels)
        assert meaning.strip() == metric.help
    alerts = [
        rule["alert"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
    ]
    assert re.findall(r"^\| `(Tidemill\w+)` ", page, re.MULTILINE) == alerts
