"""Writing to a topic of a real broker: once, fenced, after kills, bounded."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaProducer

from tests.support.kafka_broker import TestBroker
from tidemill.features.contract import SECOND
from tidemill.features.errors import (
    BrokerUnreachable,
    FencedWriter,
    MessagesNotWritten,
    MessageTooLarge,
    NoSuchTopic,
    OpenTransaction,
    PositionOutOfRange,
    RecreatedTopic,
    StateMismatch,
)
from tidemill.pipelines.config.sink_section import PREDICTIONS, REJECTED, KafkaSink
from tidemill.pipelines.delivery import topic_sink
from tidemill.pipelines.delivery.compare import compare
from tidemill.pipelines.delivery.outgoing import Outgoing, place_of
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.delivery.read_back import TopicEnds, read_back
from tidemill.pipelines.delivery.record import Delivered, DeliveryRecord
from tidemill.pipelines.delivery.topic_sink import TopicSink
from tidemill.pipelines.io.kafka.writer import Writer
from tidemill.serving.files.segment_names import segment_prefix

STREAM = "root/generation/1"
MINE = [("tidemill-stream", STREAM.encode()), ("tidemill-kind", b"prediction")]


def message(position: int, value: bytes = b"{}") -> Outgoing:
    headers = [*MINE, ("partition", b"0"), ("position", b"%d" % position)]
    return Outgoing(Place(("prediction", 0), position), b"%d" % position, value, headers)


def messages(*positions: int) -> list[Outgoing]:
    return [message(position) for position in positions]


def place(broker: TestBroker, topic: str, give_up_s: int = 30) -> KafkaSink:
    give_up_us = give_up_s * SECOND
    return KafkaSink(bootstrap=(broker.bootstrap,), topic=topic, give_up_after_us=give_up_us)


def begun(
    sink: KafkaSink, segment: int = 1, before: Delivered | None = None
) -> tuple[TopicSink, Delivered]:
    made = TopicSink(PREDICTIONS, sink, f"writer-{sink.topic}")
    return made, made.begin(STREAM, segment, before)


def committed(sink: KafkaSink) -> list[int]:
    ends = TopicEnds(sink.connection, sink.topic)
    found = read_back(sink.connection, sink.topic, [0] * len(ends.firsts), ends, 20.0)
    places = [place_of(headers, STREAM) for some in found for headers in some.headers]
    return sorted(one.position for one in places if one is not None)


def test_what_is_there_is_not_written_again(broker: TestBroker) -> None:
    sink = place(broker, broker.new_topic(3))
    first, record = begun(sink)
    first.write(messages(1, 2, 3))
    first.write(messages(2, 3, 4))  # a bundle that the engine repeats
    first.close()
    assert (first.written, first.already_there) == (4, 2)
    second, again = begun(sink, 1, record)  # the segment is repeated after a kill
    second.write(messages(4, 5, 1, 2, 3))
    assert (second.written, second.already_there) == (1, 4)
    third = again.ended(1, second.ends())
    second.close()
    last, _ = begun(sink, 2, third)
    last.write(messages(6))
    last.close()
    assert committed(sink) == [1, 2, 3, 4, 5, 6]


def test_a_large_bundle_is_several_transactions(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    commit = Writer.commit

    def counted(self: Writer) -> None:
        commits.append(1)
        commit(self)

    monkeypatch.setattr(topic_sink, "MOST_MESSAGES", 10)
    monkeypatch.setattr(Writer, "commit", counted)
    sink = place(broker, broker.new_topic())
    made, _ = begun(sink)
    made.write(messages(*range(25)))
    made.write([])
    made.close()
    assert len(commits) == 3
    assert committed(sink) == list(range(25))


def test_a_writer_that_was_replaced_is_fenced(broker: TestBroker) -> None:
    """As a process that was stopped, replaced and woken up."""
    sink = place(broker, broker.new_topic())
    paused, record = begun(sink)
    paused.write(messages(1))
    assert paused._writer is not None
    paused._writer.begin()  # it was stopped in a transaction
    paused._writer.send(sink.topic, None, b"2", b"{}", message(2).headers)
    paused._writer.flush()
    newer, _ = begun(sink, 1, record)
    newer.write(messages(1, 2))
    with pytest.raises(FencedWriter):
        paused._writer.commit()
    with pytest.raises(FencedWriter):
        paused.write(messages(3))
    with pytest.raises(FencedWriter):  # it does not begin anew
        paused.write(messages(4))
    newer.write(messages(3))
    newer.close()
    paused.close()
    assert committed(sink) == [1, 2, 3]


def test_a_replaced_process_opens_no_other_writer(broker: TestBroker) -> None:
    """Its writer is gone for another reason: another would fence the process that replaced it."""
    sink = place(broker, broker.new_topic())
    replaced = TopicSink(PREDICTIONS, sink, f"writer-{sink.topic}", lambda: False)
    replaced.begin(STREAM, 1, None)
    replaced._drop_writer()
    newer, _ = begun(sink)
    with pytest.raises(FencedWriter, match="another process writes"):
        replaced.write(messages(1))
    newer.write(messages(1))
    newer.close()
    replaced.close()
    assert committed(sink) == [1]


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_commit_without_an_answer_is_looked_up(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, *, is_committed: bool
) -> None:
    sink = place(broker, broker.new_topic())
    made, _ = begun(sink)
    made.write(messages(1))
    commit, calls = Writer.commit, []

    def lost(self: Writer) -> None:
        calls.append(1)
        if is_committed or len(calls) > 1:
            commit(self)
        if len(calls) == 1:
            raise MessagesNotWritten("the broker did not answer")

    monkeypatch.setattr(Writer, "commit", lost)
    made.write(messages(2, 3))
    made.write(messages(4))
    made.close()
    assert committed(sink) == [1, 2, 3, 4]
    assert made.written == 4


def test_a_broker_that_stays_away_ends_the_run_by_name(
    own_broker: Callable[..., TestBroker],
) -> None:
    broker = own_broker()
    broker.start()
    sink = place(broker, broker.new_topic(), give_up_s=2)
    made, record = begun(sink)
    made.write(messages(1, 2))
    broker.kill()
    began = time.monotonic()
    with pytest.raises((MessagesNotWritten, BrokerUnreachable), match=r"give_up_after.*--resume"):
        made.write(messages(3))
    assert time.monotonic() - began < 60
    made.close()
    broker.start()
    again, _ = begun(replace(sink, give_up_after_us=30 * SECOND), 1, record)
    again.write(messages(1, 2, 3))
    again.close()
    assert committed(sink) == [1, 2, 3]


def test_an_open_transaction_of_another_writer_is_waited_for_and_named(broker: TestBroker) -> None:
    sink = place(broker, broker.new_topic(), give_up_s=1)
    first, record = begun(sink)
    first.write(messages(1))
    other = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"o-{sink.topic}")
    other.init_transactions()
    other.begin_transaction()
    other.send(sink.topic, b"another's").get(60)
    first.write(messages(2))
    first.close()
    second = TopicSink(PREDICTIONS, sink, f"writer-{sink.topic}")
    with pytest.raises(OpenTransaction, match="another writer's transaction"):
        second.begin(STREAM, 1, record)
    other.commit_transaction()
    other.close()
    second.begin(STREAM, 1, record)
    second.write(messages(1, 2, 3))
    second.close()
    assert committed(sink) == [1, 2, 3]


def removed(broker: TestBroker, topic: str) -> None:
    """Remove all messages of a topic, as its retention would."""
    from kafka import TopicPartition
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        admin.delete_records({TopicPartition(topic, 0): -1})
    finally:
        admin.close()


def test_removed_messages_are_named_unless_none_can_be_lost(broker: TestBroker) -> None:
    sink = place(broker, broker.new_topic())
    first, record = begun(sink)
    first.write(messages(1, 2))
    kept = record.ended(1, first.ends())
    first.write(messages(3))
    first.close()
    removed(broker, sink.topic)
    clean, _ = begun(sink, 2, kept)  # nothing was written after the savepoint of segment 1
    clean.close()
    with pytest.raises(PositionOutOfRange, match=r"from offset 0 on.*retention.*another topic"):
        begun(sink, 1, record)
    with pytest.raises(PositionOutOfRange):
        begun(sink, 2, replace(kept, begun=2))


def test_another_topic_begins_anew_and_a_recreated_one_is_named(broker: TestBroker) -> None:
    sink = place(broker, broker.new_topic())
    first, record = begun(sink)
    first.write(messages(1))
    first.close()
    other = place(broker, broker.new_topic())
    second, anew = begun(other, 2, record)
    second.write(messages(1, 2))
    second.close()
    assert (anew.first_segment, anew.begun, committed(other)) == (2, 2, [1, 2])
    with pytest.raises(RecreatedTopic, match=r"predictions\.kafka"):
        begun(sink, 1, replace(record, topic_id="another"))
    with pytest.raises(StateMismatch, match="savepoints"):
        begun(sink, 3, replace(record, begun=3))


def test_a_prediction_that_is_too_large_is_without_its_features_and_verified(
    broker: TestBroker, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    from tidemill.pipelines.delivery.outgoing import of_predictions

    sink = place(broker, broker.new_topic(max_message_bytes=2_000))
    made, record = begun(sink)
    texts = {"payments__last_note": ["x" * 3_000, "short"], "as_of__payments": [7, 7]}
    written = rows([1, 2], **texts)
    made.write(of_predictions(written.combine_chunks().to_batches()[0], STREAM))
    record = record.ended(1, made.ends())
    made.close()
    ends = TopicEnds(sink.connection, sink.topic)
    found = [
        (json.loads(value), dict(headers).get("left_out"))
        for some in read_back(sink.connection, sink.topic, [0], ends, 20.0)
        for value, headers in zip(some.values, some.headers, strict=True)
    ]
    (short, left_out), (whole, nothing) = found
    assert set(whole) - set(short) == {"payments__last_note"}
    assert (short["score"], short["as_of__payments"], nothing) == (0.5, 7, None)
    assert left_out is not None
    assert int(left_out) > 3_000
    for score, changed in ((0.5, 0), (0.25, 1)):
        folder = tmp_path / str(score) / "predictions"
        folder.mkdir(parents=True)
        of_files = rows([1, 2], **texts | {"score": [score, 0.5]})
        pq.write_table(of_files, folder / f"{segment_prefix(1)}0.parquet")
        equal = compare(PREDICTIONS, sink, record, folder.parent, STREAM)
        assert (equal.compared, equal.changed, equal.shortened) == (2, changed, 1)


def test_a_message_that_is_too_large_is_named_or_left_out(broker: TestBroker) -> None:
    sink = place(broker, broker.new_topic(max_message_bytes=2_000))
    made, _ = begun(sink)
    with pytest.raises(MessageTooLarge):
        made.write([replace(message(1), key=b"x" * 3_000)])
    made.close()
    of_rejected = TopicSink(REJECTED, sink, f"rejected-{sink.topic}")
    of_rejected.begin(STREAM, 1, None)
    of_rejected.write([message(2, b"x" * 3_000), message(3)])
    of_rejected.close()
    ends = TopicEnds(sink.connection, sink.topic)
    found = [
        (value, dict(headers).get("left_out"))
        for some in read_back(sink.connection, sink.topic, [0], ends, 20.0)
        for value, headers in zip(some.values, some.headers, strict=True)
    ]
    assert found == [(b"", b"3000"), (b"{}", None)]


def test_a_topic_that_is_not_there_is_named(broker: TestBroker) -> None:
    with pytest.raises(NoSuchTopic):
        TopicSink(PREDICTIONS, place(broker, "no-such-topic"), "writer")


def test_the_record_keeps_what_it_says(tmp_path: Path) -> None:
    sink = Delivered("topic", "id", 2, (0, 5), 3, {2: (7, 8)})
    record = DeliveryRecord("writer", STREAM, {"predictions": sink.ended(3, (9, 9))})
    assert DeliveryRecord.read(tmp_path) is None
    record.write(tmp_path)
    assert DeliveryRecord.read(tmp_path) == record
    assert record.sinks["predictions"].is_complete
    assert not sink.is_complete


# Comparing topic and files.


def rows(positions: Sequence[int], **columns: Any) -> pa.Table:
    count = len(positions)
    given = {
        "request_id": [f"r-{n}" for n in positions], "partition": [0] * count,
        "position": list(positions), "score": [0.5] * count, "bundle_version": ["v1"] * count,
        "spec_hash": ["s"] * count, "sent_us": [1] * count, "created_us": [2_000] * count,
    } | columns  # fmt: skip
    return pa.table(given)


def test_comparing_names_what_is_lost_doubled_changed_and_extra(
    broker: TestBroker, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    from tidemill.pipelines.delivery.outgoing import of_predictions

    sink = place(broker, broker.new_topic())
    made, record = begun(sink)
    written = rows(
        [1, 2, 3, 4, 9], score=[0.5, 0.5, 0.25, 0.75, 0.5], created_us=[5_000] * 5,
        bundle_version=["v1", "v1", "v1", "v0", "v1"],
    )  # fmt: skip
    made.write(of_predictions(written.combine_chunks().to_batches()[0], STREAM))
    made._places = type(made._places)()
    made.write(of_predictions(rows([2]).combine_chunks().to_batches()[0], STREAM))
    record = record.ended(1, made.ends())
    made.close()
    folder = tmp_path / "predictions"
    folder.mkdir()
    pq.write_table(rows([1, 2, 3, 4, 5]), folder / f"{segment_prefix(1)}0.parquet")
    found = compare(PREDICTIONS, sink, record, tmp_path, STREAM)
    assert found.figures() == {
        "compared": 5, "lost": 1, "doubled": 1, "changed": 1, "extra": 1, "not_comparable": 0,
        "scored_otherwise": 1, "shortened": 0,
    }  # fmt: skip
    named = Counter((one.what, one.place.position, one.field) for one in found.differences)
    assert named == Counter(
        [("lost", 5, ""), ("doubled", 2, ""), ("changed", 3, "score"), ("extra", 9, "")]
    )
    # A segment that has not ended proves neither the one nor the other.
    open_ended = replace(record, begun=2)
    pq.write_table(rows([8]), folder / f"{segment_prefix(2)}0.parquet")
    found = compare(PREDICTIONS, sink, open_ended, tmp_path, STREAM)
    assert (found.compared, found.lost, found.extra) == (5, 1, 0)
    removed(broker, sink.topic)
    found = compare(PREDICTIONS, sink, record, tmp_path, STREAM)
    assert (found.compared, found.lost, found.not_comparable) == (0, 0, 5)
