"""The job in PyFlink's DataStream API: state and event-time timers of each card.

A watermark follows each partition, by the messages' times, so that timers fire when no row before
them is missing. A checkpoint is made every 10 s, exactly once; answers are written at least once,
since a transaction would hold them until the next checkpoint.
"""

from __future__ import annotations

import json
import os

from flink_settings import settings
from point_in_time import DISORDER_MS, add_payment, features_at, job, millis
from pyflink.common import Duration, SimpleStringSchema, Types, WatermarkStrategy
from pyflink.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

JOB = job()


class Card(KeyedProcessFunction):
    """A card's payments, and its requests that wait for their watermark."""

    def open(self, runtime_context):
        """Say which states there are."""
        history = ValueStateDescriptor("history", Types.PICKLED_BYTE_ARRAY())
        waiting = MapStateDescriptor("waiting", Types.LONG(), Types.STRING())
        self.history = runtime_context.get_state(history)
        self.waiting = runtime_context.get_map_state(waiting)

    def process_element(self, row, ctx):
        """Take a row."""
        _, at, request, amount = row
        if not request:
            times, amounts = self.history.value() or ([], [])
            add_payment(times, amounts, at, amount, ctx.timer_service().current_watermark())
            self.history.update((times, amounts))
            return
        others = self.waiting.get(at)
        self.waiting.put(at, request if others is None else f"{others} {request}")
        ctx.timer_service().register_event_time_timer(at)

    def on_timer(self, timestamp, ctx):
        """Answer the requests of an instant."""
        times, amounts = self.history.value() or ([], [])
        requests = self.waiting.get(timestamp)
        self.waiting.remove(timestamp)
        for request in requests.split():
            answer = features_at(times, amounts, timestamp)
            yield json.dumps({"request": request, **answer})


def rows_of(message: str):
    """Read a message: one row, or an array of them."""
    found = json.loads(message)
    for row in found if isinstance(found, list) else (found,):
        if "paid_at" in row:
            yield row["card"], millis(row["paid_at"]), "", row["amount"]
        else:
            yield row["card"], millis(row["asked_at"]), row["request"], 0.0


FURTHER = {
    # The Python function runs in the JVM's process: no serialising between processes.
    "python.execution-mode": os.environ.get("PEERS_FLINK_MODE", "thread"),
    "python.fn-execution.bundle.time": "5" if JOB.steady else "1000",
    "python.fn-execution.bundle.size": "1000",
    "python.state.cache-size": "40000",
}


def main() -> None:
    """Run the job in Flink's local cluster."""
    env = StreamExecutionEnvironment.get_execution_environment(settings(JOB, FURTHER))
    env.set_parallelism(JOB.parallelism)
    watermarks = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(DISORDER_MS))

    def stream(topic: str):
        source = (
            KafkaSource.builder()
            .set_bootstrap_servers(JOB.bootstrap)
            .set_topics(topic)
            .set_group_id(f"flink-{topic}")
            .set_starting_offsets(KafkaOffsetsInitializer.earliest())
            .set_value_only_deserializer(SimpleStringSchema())
            .build()
        )
        return env.from_source(source, watermarks, topic)

    row = Types.TUPLE([Types.STRING(), Types.LONG(), Types.STRING(), Types.DOUBLE()])
    answers = (
        stream(JOB.payments)
        .union(stream(JOB.requests))
        .flat_map(rows_of, output_type=row)
        .key_by(lambda one: one[0], key_type=Types.STRING())
        .process(Card(), output_type=Types.STRING())
    )
    serializer = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(JOB.answers)
        .set_value_serialization_schema(SimpleStringSchema())
        .build()
    )
    sink = (
        KafkaSink.builder()
        .set_bootstrap_servers(JOB.bootstrap)
        .set_record_serializer(serializer)
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
        .set_property("linger.ms", "2")
        .build()
    )
    answers.sink_to(sink)
    env.execute("peers")


if __name__ == "__main__":
    main()
