"""The job in Bytewax: a stateful step of two keys, the topics' partitions.

Bytewax has watermarks for each key only, and they follow the clock of the machine: while a full
topic is read, they would pass rows that have not been read yet. So a key is a partition of the
topics, in which a card's payments and requests both are, and the step takes the least of the newest
times of its two topics. State is written every 10 s; after a crash, answers since then come again.
"""

from __future__ import annotations

import heapq
from datetime import timedelta
from pathlib import Path

import orjson
from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from point_in_time import DISORDER_MS, add_payment, features_at, job, millis

JOB = job()


class Partition(StatefulBatchLogic):
    """The cards of a partition, and the requests that wait for rows before them."""

    def __init__(self, state=None):
        self.cards, self.waiting, self.newest = state or ({}, [], [0, 0])

    def on_batch(self, rows):
        """Take rows; answer the requests before which no row is missing."""
        before = min(self.newest) - DISORDER_MS
        for row in rows:
            card = row["card"]
            if "paid_at" in row:
                at = millis(row["paid_at"])
                self.newest[0] = max(self.newest[0], at)
                found = self.cards.get(card)
                if found is None:
                    found = self.cards[card] = ([], [])
                add_payment(*found, at, row["amount"], before)
            else:
                at = millis(row["asked_at"])
                self.newest[1] = max(self.newest[1], at)
                heapq.heappush(self.waiting, (at, row["request"], card))
        until = min(self.newest) - DISORDER_MS
        answers = []
        while self.waiting and self.waiting[0][0] <= until:
            at, request, card = heapq.heappop(self.waiting)
            found = features_at(*self.cards.get(card, ([], [])), at)
            answers.append({"request": request, **found})
        return answers, StatefulBatchLogic.RETAIN

    def snapshot(self):
        """Copy the state: Bytewax writes it later."""
        cards = {
            card: (list(times), list(amounts)) for card, (times, amounts) in self.cards.items()
        }
        return cards, list(self.waiting), list(self.newest)


def rows_of(message: KafkaSourceMessage):
    """Read a message: one row, or an array of them."""
    found = orjson.loads(message.value)
    key = str(message.partition)
    return [(key, row) for row in found] if isinstance(found, list) else [(key, found)]


def message_of(keyed) -> KafkaSinkMessage:
    """Write an answer."""
    answer = keyed[1]
    return KafkaSinkMessage(answer["request"].encode(), orjson.dumps(answer))


# Small polls keep answers quick; large ones make the most of a full topic (the guide's advice).
source = KafkaSource(
    [JOB.bootstrap],
    [JOB.payments, JOB.requests],
    batch_size=(1_000 if not JOB.steady else 200) if JOB.form == "rows" else 4,
    add_config={"fetch.wait.max.ms": "10", "queued.min.messages": "20000"},
)
flow = Dataflow("peers")
read = op.input("read", flow, source)
rows = op.flat_map("parse", read, rows_of)
answers = op.stateful_batch("features", rows, Partition)
sink = KafkaSink([JOB.bootstrap], JOB.answers, add_config={"linger.ms": "2"})
op.output("write", op.map("encode", answers, message_of), sink)

if __name__ == "__main__":
    place = Path(JOB.folder) / "recovery"
    place.mkdir(parents=True)
    init_db_dir(place, 1)
    cli_main(
        flow,
        workers_per_process=JOB.parallelism,
        epoch_interval=timedelta(seconds=10),
        recovery_config=RecoveryConfig(str(place), backup_interval=timedelta(0)),
    )
