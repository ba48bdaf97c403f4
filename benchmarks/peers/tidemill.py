"""The job in Tidemill, as a project and a configuration file, on each of its engines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Final

from benchmarks.peers.environments import ROOT
from benchmarks.peers.rows import NAMES, instants
from benchmarks.peers.systems import Program, Run, SystemFailed
from benchmarks.peers.watching import Answer
from tests.support.flink_cluster import TestCluster
from tidemill.features.contract import MINUTE

PROJECT: Final = """
from tidemill import (
    Entity, EventStream, FeatureView, Project, Request, col, count, max, mean, sum
)

payments = EventStream(
    "payments", event_id="payment", event_time="paid_at", out_of_orderness="1s",
    transport=["sent_at"],
    schema={
        "payment": "string", "paid_at": "timestamp", "sent_at": "timestamp", "card": "string",
        "amount": "float64",
    },
)
by_card = FeatureView(
    "by_card", entity=Entity("card"), stream=payments, hop="1m",
    features={
        f"{name}_{over}": feature
        for over in ("10m", "1h", "1d")
        for name, feature in {
            "count": count(over=over), "sum": sum(col("amount"), over=over),
            "mean": mean(col("amount"), over=over), "max": max(col("amount"), over=over),
        }.items()
    },
)
requests = Request(
    "requests", request_id="request", request_time="asked_at", out_of_orderness="1s",
    schema={
        "request": "string", "asked_at": "timestamp", "sent_at": "timestamp", "card": "string",
    },
)
project = Project("payments", views=[by_card], request=requests)
"""
CONFIGURATION: Final = """
project: project:project
root: run
shards: {shards}
sources:
  payments:
    files: [payments.csv]
    received: sent_at
    kafka: {{bootstrap: "{bootstrap}", topic: {payments}, format: {format}{client}}}
  requests:
    files: [requests.csv]
    received: sent_at
    kafka: {{bootstrap: "{bootstrap}", topic: {requests}, format: {format}{client}}}
splits: {{train_until: "{train_until}", evaluate_until: "{until}"}}
online_store: {{type: sqlite, path: online.db}}
stream: {{engine: {engine}, savepoint_every: 10s}}
predictions:
  kafka: {{bootstrap: "{bootstrap}", topic: {answers}, compression: gzip{client}}}
"""
_BACKFILL_S: Final = 900.0
_HISTORY: Final = 200
_TAIL: Final = 600


class Tidemill(Program):
    """A stream of Tidemill.

    Args:
        engine: ``fnapi``, ``prism`` or ``flink``.
        client: The client library of its topics; empty for the default.
    """

    forms = ("rows", "json", "arrow")
    grid_ms = MINUTE // 1_000
    promises = "exact, proven; state and answers exactly once, savepoints of 10 s"

    def __init__(self, engine: str, client: str = "") -> None:
        self.name = f"tidemill-{engine}" + ("-confluent" if client else "")
        self._engine, self._client = engine, client
        self._cluster: TestCluster | None = None

    def prepare(self) -> None:
        """Everything is there already."""

    def start(self, run: Run) -> None:
        """Make a history, its features, and start the stream (and the cluster before it)."""
        run.folder.mkdir(parents=True)
        _write(run, self._engine, self._client)
        done = subprocess.run(
            [*_command("backfill")],
            cwd=run.folder,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=_BACKFILL_S,
            check=False,
        )
        if done.returncode:
            raise SystemFailed((done.stdout + done.stderr)[-_TAIL:])
        flags: list[str] = []
        if self._engine == "flink":
            self._cluster = TestCluster(run.folder / "cluster")
            self._cluster.start()
            flags = [*self._cluster.flags, f"--parallelism={run.parallelism}"]
        self._start(_command("stream", *flags), run.folder, _environment())

    def processes(self) -> Iterable[int]:
        """Return the stream and, on Flink, all processes of the cluster."""
        yield from super().processes()
        if self._cluster is not None:
            for server in self._cluster.running.values():
                yield server.process.pid

    def stop(self) -> None:
        """End the stream and the cluster."""
        super().stop()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def answer(self, found: dict[str, Any]) -> Answer | None:
        """Take an answer from a prediction."""
        return found["request_id"], {name: found[f"by_card__{name}"] for name in NAMES}


def _command(*arguments: str) -> list[str]:
    code = "import sys; from tidemill.pipelines.commands.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _write(run: Run, engine: str, client: str) -> None:
    """Write the project, its configuration, and a history of cards that nobody asks for later."""
    import numpy as np

    minute = MINUTE // 1_000
    until = run.begin_ms // minute * minute
    times = instants(np.linspace(until - 60 * minute, until - minute, _HISTORY).astype(np.int64))
    paid = [f"h-{n},{at},{at},other-{n % 7},1.5" for n, at in enumerate(times)]
    asked = [f"hr-{n},{at},{at},other-{n % 7}" for n, at in enumerate(times)]
    folder = run.folder
    (folder / "payments.csv").write_text("\n".join(["payment,paid_at,sent_at,card,amount", *paid]))
    (folder / "requests.csv").write_text("\n".join(["request,asked_at,sent_at,card", *asked]))
    (folder / "project.py").write_text(PROJECT)
    payments, requests, answers = run.topics
    train_until, last = instants(np.array([until - 30 * minute, until]))
    (folder / "tidemill.yaml").write_text(
        CONFIGURATION.format(
            shards=2,
            bootstrap=run.bootstrap,
            payments=payments,
            requests=requests,
            answers=answers,
            format="json" if run.form == "rows" else run.form,
            client=f", client: {client}" if client else "",
            train_until=train_until,
            until=last,
            engine=engine,
        )
    )


TIDEMILL: Final = (
    Tidemill("fnapi"),
    Tidemill("fnapi", "confluent-kafka"),
    Tidemill("prism"),
    Tidemill("flink"),
    Tidemill("flink", "confluent-kafka"),
)
