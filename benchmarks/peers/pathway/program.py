"""The job in Pathway: an interval join of requests and payments, grouped by request.

Pathway buffers rows until a later one has come, by the newest time of each side; what comes later
still corrects an answer. A user sees a first answer and, perhaps, others. Inputs are kept every
10 s; after a crash, answers since then come again.
"""

from __future__ import annotations

import datetime

import pathway as pw
from point_in_time import DISORDER_MS, LONGEST_MS, WINDOWS_MS, job

JOB = job()
FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
SETTINGS = {
    "bootstrap.servers": JOB.bootstrap,
    "group.id": f"pathway-{JOB.answers}",
    "auto.offset.reset": "earliest",
    "fetch.wait.max.ms": "10",
    "linger.ms": "2",
}


class Payment(pw.Schema):
    payment: str
    paid_at: str
    card: str
    amount: float


class Ask(pw.Schema):
    request: str
    asked_at: str
    card: str


def read(topic: str, schema: type[pw.Schema]) -> pw.Table:
    """Return the rows of a topic."""
    return pw.io.kafka.read(
        SETTINGS,
        topic=topic,
        schema=schema,
        format="json",
        autocommit_duration_ms=20 if JOB.steady else 200,
        name=topic,
    )


def span(millis: int) -> datetime.timedelta:
    """Return a length of time."""
    return datetime.timedelta(milliseconds=millis)


def main() -> None:
    """Run until it is killed."""
    paid = read(JOB.payments, Payment)
    asked = read(JOB.requests, Ask)
    paid = paid.select(paid.card, paid.amount, at=paid.paid_at.dt.strptime(FORMAT))
    asked = asked.select(asked.card, asked.request, at=asked.asked_at.dt.strptime(FORMAT))
    pairs = asked.interval_join_left(
        paid,
        asked.at,
        paid.at,
        pw.temporal.interval(span(-LONGEST_MS), span(-1)),
        asked.card == paid.card,
        behavior=pw.temporal.common_behavior(delay=span(DISORDER_MS)),
    ).select(
        asked.request,
        amount=paid.amount,
        age=asked.at - pw.coalesce(paid.at, asked.at - span(2 * LONGEST_MS)),
    )
    reduced = {}
    for name, millis in WINDOWS_MS.items():
        within = pw.this.age <= span(millis)
        amount = pw.coalesce(pw.this.amount, 0.0)
        reduced[f"count_{name}"] = pw.reducers.sum(pw.if_else(within, 1, 0))
        reduced[f"sum_{name}"] = pw.reducers.sum(pw.if_else(within, amount, 0.0))
        reduced[f"max_{name}"] = pw.reducers.max(pw.if_else(within, amount, -1.0))
    grouped = pairs.groupby(pw.this.request).reduce(pw.this.request, **reduced)
    means = {
        f"mean_{name}": pw.if_else(
            grouped[f"count_{name}"] > 0,
            grouped[f"sum_{name}"] / grouped[f"count_{name}"],
            -1.0,
        )
        for name in WINDOWS_MS
    }
    out = grouped.with_columns(**means)
    pw.io.kafka.write(out, SETTINGS, JOB.answers, format="json")
    backend = pw.persistence.Backend.filesystem(f"{JOB.folder}/kept")
    pw.run(
        monitoring_level=pw.MonitoringLevel.NONE,
        persistence_config=pw.persistence.Config(backend, snapshot_interval_ms=10_000),
    )


if __name__ == "__main__":
    main()
