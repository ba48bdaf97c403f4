"""The job in Quix Streams: a function with state, over both topics.

Quix reads partitions of one number, of both topics, in the order of their messages' times, but has
no timers: an answer that waits for later rows can only be given when such a row comes, and a card
may have none. So the key of every row is the partition, and the state has a value for each card.
State and positions are committed every 10 s; after a crash, answers since then come again.
"""

from __future__ import annotations

from pathlib import Path

import orjson
from point_in_time import DISORDER_MS, add_payment, features_at, job, millis
from quixstreams import Application, State
from quixstreams.models import Deserializer

JOB = job()
SLOT_MS = 50
"""Waiting requests of so many milliseconds are one value of the state."""


class Partition(Deserializer):
    """Says that all rows of a partition have one key."""

    def __call__(self, value, ctx):
        return "partition"


class Rows(Deserializer):
    """Reads a message: one row, or an array of them."""

    split_values = False

    def __call__(self, value, ctx):
        return orjson.loads(value)


def answers(row: dict, state: State) -> list[dict]:
    """Take a row; answer the requests before which no row is missing."""
    newest = state.get("newest") or [0, 0, 0]
    card = row["card"]
    if "paid_at" in row:
        at = millis(row["paid_at"])
        newest[0] = max(newest[0], at)
        found = state.get(card) or [[], []]
        add_payment(*found, at, row["amount"], min(newest[:2]) - DISORDER_MS)
        state.set(card, found)
    else:
        at = millis(row["asked_at"])
        newest[1] = max(newest[1], at)
        slot = at // SLOT_MS
        waiting = state.get(f"slot {slot}") or []
        if not waiting:
            slots = state.get("slots") or []
            slots.append(slot)
            slots.sort()
            state.set("slots", slots)
        waiting.append([at, row["request"], card])
        state.set(f"slot {slot}", waiting)
        newest[2] = newest[2] or slot
    until = min(newest[0], newest[1]) - DISORDER_MS
    out = []
    # newest[2] is the first slot with a waiting request: mostly there is nothing else to read.
    if newest[2] and (newest[2] + 1) * SLOT_MS <= until:
        slots = state.get("slots") or []
        while slots and (slots[0] + 1) * SLOT_MS <= until:
            for asked, request, of in state.get(f"slot {slots[0]}"):
                found = state.get(of) or [[], []]
                out.append({"request": request, **features_at(*found, asked)})
            state.delete(f"slot {slots.pop(0)}")
        newest[2] = slots[0] if slots else 0
        state.set("slots", slots)
    state.set("newest", newest)
    return out


def main() -> None:
    """Run until SIGTERM."""
    app = Application(
        broker_address=JOB.bootstrap,
        consumer_group=f"quix-{JOB.answers}",
        auto_offset_reset="earliest",
        state_dir=Path(JOB.folder) / "state",
        commit_interval=10.0,
        processing_guarantee="at-least-once",
        use_changelog_topics=True,
        consumer_extra_config={"fetch.wait.max.ms": 10, "queued.min.messages": 20_000},
        producer_extra_config={"linger.ms": 2},
        loglevel="WARNING",
    )
    inputs = [
        app.topic(name, key_deserializer=Partition(), value_deserializer=Rows())
        for name in (JOB.payments, JOB.requests)
    ]
    target = app.topic(JOB.answers, value_serializer="json", key_serializer="str")
    rows = app.dataframe(inputs[0]).concat(app.dataframe(inputs[1]))
    if JOB.form != "rows":
        rows = rows.apply(lambda found: found, expand=True)
    out = rows.apply(answers, stateful=True, expand=True)
    out.to_topic(target, key=lambda answer: answer["request"])
    app.run()


if __name__ == "__main__":
    main()
