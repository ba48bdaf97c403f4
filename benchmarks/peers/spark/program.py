"""The job in Spark Structured Streaming: `applyInPandasWithState`, in micro-batches.

A join of both streams and an aggregation would be Spark's own way, but the watermark after a join
that reaches back a day is a day behind, and so would be the answers. A function is called for each
key of each micro-batch, so keys are groups of cards. Every micro-batch is written down before the
next. Spark's watermark follows the newest row of all partitions: a full topic, whose partitions
are read at different speeds, needs one of minutes, or rows are dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

import orjson
import pandas as pd
from point_in_time import DISORDER_MS, add_payment, features_at, job
from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from pyspark.sql.streaming.state import GroupState, GroupStateTimeout

JOB = job()
BACKLOG_DISORDER_MS = 600_000
DELAY_MS = DISORDER_MS if JOB.steady else BACKLOG_DISORDER_MS
PAYMENT = "payment STRING, paid_at TIMESTAMP, card STRING, amount DOUBLE"
REQUEST = "request STRING, asked_at TIMESTAMP, card STRING"
GROUPS = 8


def answers(
    _key: tuple[int], parts: Iterable[pd.DataFrame], state: GroupState
) -> Iterator[pd.DataFrame]:
    """Take the rows of some cards; answer the requests before which no row is missing."""
    cards, waiting = orjson.loads(state.get[0]) if state.exists else ({}, [])
    until = state.getCurrentWatermarkMs()
    if not state.hasTimedOut:
        for part in parts:
            columns = part.card, part.millis, part.request, part.amount
            for card, at, request, amount in zip(*(one.tolist() for one in columns), strict=True):
                if request is None:
                    if (found := cards.get(card)) is None:
                        found = cards[card] = [[], []]
                    add_payment(*found, at, amount, until)
                else:
                    heapq.heappush(waiting, [at, request, card])
    out = []
    while waiting and waiting[0][0] <= until:
        at, request, card = heapq.heappop(waiting)
        found = features_at(*cards.get(card, ([], [])), at)
        out.append(orjson.dumps({"request": request, **found}).decode())
    state.update((orjson.dumps([cards, waiting]),))
    if waiting:
        state.setTimeoutTimestamp(max(waiting[0][0], until + 1))
    yield pd.DataFrame({"value": out})


def main() -> None:
    """Run until it is killed."""
    spark = (
        SparkSession.builder.master(f"local[{JOB.parallelism}]")
        .config("spark.jars", ",".join(JOB.jars))
        .config("spark.sql.shuffle.partitions", JOB.parallelism)
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "2g")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", 100_000)
        .config("spark.sql.streaming.metricsEnabled", "false")
        .config("spark.sql.streaming.noDataMicroBatches.enabled", "true")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")

    def rows(topic: str, schema: str, time: str, most: int):
        read = (
            spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", JOB.bootstrap)
            .option("subscribe", topic)
            .option("startingOffsets", "earliest")
            .option("maxOffsetsPerTrigger", most if JOB.form == "rows" else most // 1_000)
            .load()
        )
        value = f.col("value").cast("string")
        if JOB.form == "rows":
            row = f.from_json(value, schema)
        else:
            row = f.explode(f.from_json(value, f"ARRAY<STRUCT<{schema}>>"))
        table = read.select(row.alias("row")).select("row.*")
        return table.withColumnRenamed(time, "at").withWatermark("at", f"{DELAY_MS} milliseconds")

    millis = f.unix_millis("at").alias("millis")
    group = f.pmod(f.hash("card"), f.lit(GROUPS)).alias("key")
    none = f.lit(None)
    paid = rows(JOB.payments, PAYMENT, "paid_at", 75_000)
    asked = rows(JOB.requests, REQUEST, "asked_at", 25_000)
    both = paid.select(
        group, "card", "at", millis, none.cast("string").alias("request"), "amount"
    ).union(asked.select(group, "card", "at", millis, "request", none.cast("double")))
    out = both.groupBy("key").applyInPandasWithState(
        answers,
        outputStructType="value STRING",
        stateStructType="state BINARY",
        outputMode="append",
        timeoutConf=GroupStateTimeout.EventTimeTimeout,
    )
    query = (
        out.writeStream.format("kafka")
        .option("kafka.bootstrap.servers", JOB.bootstrap)
        .option("topic", JOB.answers)
        .option("checkpointLocation", f"{JOB.folder}/checkpoint")
        .outputMode("append")
        .start()
    )
    query.awaitTermination()


if __name__ == "__main__":
    main()
