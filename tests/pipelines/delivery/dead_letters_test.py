"""Rejected records as their topic has them: those of one root, each once, none without its bytes.

What a broker gives is made here; `stream_run.replay_live_test` reads it from a real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.pipelines.delivery.outgoing_test import predictions
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.config.sink_section import REJECTED
from tidemill.pipelines.delivery.dead_letters import DeadLetters
from tidemill.pipelines.delivery.outgoing import (
    Outgoing,
    of_predictions,
    of_rejected,
    shortened,
)
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.io.live.mended import record_id
from tidemill.pipelines.io.messages import Messages

FIRST, SECOND, OTHER = "root/generation/1", "root/generation/2", "other/generation/1"


def written(
    payloads: Sequence[bytes],
    stream: str = FIRST,
    stage: Stage = Stage.READ,
    detail: str = "ä",
    source: str = "orders",
) -> list[Outgoing]:
    """Return the messages of records, at successive offsets of a topic."""
    rows = rejected.batch(
        stage, stream=source, partition=2, positions=np.arange(len(payloads)),
        reasons=[Reason.BROKEN_JSON] * len(payloads), details=[detail] * len(payloads),
        origins=[f"t/1@{n}" for n in range(len(payloads))], payloads=payloads,
    )  # fmt: skip
    return list(of_rejected(rows, stream))


def given(outgoing: Sequence[Outgoing], timestamp_us: int = 0) -> Messages:
    return Messages(
        "rejected",
        0,
        np.arange(len(outgoing)),
        np.full(len(outgoing), timestamp_us),
        [one.key for one in outgoing],
        [one.value for one in outgoing],
        [one.headers for one in outgoing],
    )


def taken(*some: Messages, **options: Any) -> DeadLetters:
    letters = DeadLetters("root", **options)
    for one in some:
        letters.take(one)
    return letters


def test_a_record_has_its_bytes_place_and_reason() -> None:
    letters = taken(given(written([b"\xff{", b""]), 7)).letters
    first, tombstone = (
        record_id("orders", f"t/1@{n}", one) for n, one in enumerate([b"\xff{", b""])
    )
    assert list(letters) == [first, tombstone]
    assert letters[first].record == {
        "stage": "read", "reason": "broken_json", "detail": "ä", "stream": "orders",
        "partition": 2, "position": 0, "origin": "t/1@0", "payload": b"\xff{",
    }  # fmt: skip
    assert letters[first].order == (2, 0, 0)
    # A message without a value is a record of no bytes, and has all of them.
    assert (letters[tombstone].record["payload"], letters[tombstone].left_out) == (b"", None)


def test_a_stream_that_starts_over_repeats_records_and_the_newest_reason_counts() -> None:
    both = [
        given(written([b"{", b"["], FIRST, detail="before"), 10),
        given(written([b"{"], SECOND, detail="after"), 20),
    ]
    for some in (both, both[::-1]):
        letters = taken(*some).letters
        assert sorted(
            (one.record["payload"], one.record["detail"]) for one in letters.values()
        ) == [
            (b"[", "before"),
            (b"{", "after"),
        ]


def test_messages_of_other_roots_and_writers_are_counted() -> None:
    foreign = given(
        [
            *of_predictions(predictions("v1"), FIRST),
            Outgoing(Place(("x",), 0), b"", b"{", []),
            Outgoing(Place(("x",), 0), b"", b"{", [("tidemill-stream", b"\xff"), ("a", None)]),
            Outgoing(Place(("x",), 0), b"", b"{", [("tidemill-stream", FIRST.encode())]),
            # A header is gone, a number is none, the id is gone.
            *(changed(written([b"{"])[0], name, None) for name in ("reason", "record")),
            changed(written([b"{"])[0], "position", b"x"),
        ]
    )
    letters = taken(foreign, given(written([b"{", b"["], OTHER)), given(written([b"{"])))
    assert [one.record["payload"] for one in letters.letters.values()] == [b"{"]
    assert letters.others == {"other": 2}
    assert (letters.messages, letters.unusable, letters.damaged) == (11, 8, 0)


def changed(message: Outgoing, name: str, value: bytes | None) -> Outgoing:
    headers = [(key, value if key == name else one) for key, one in message.headers]
    kept = [(key, one) for key, one in headers if one is not None]
    return Outgoing(message.place, message.key, message.value, kept)


def test_bytes_that_are_not_those_of_the_record_are_not_used() -> None:
    (message,) = written([b"{"])
    letters = taken(given([Outgoing(message.place, message.key, b"", message.headers)]))
    assert letters.letters == {}
    assert letters.damaged == 1


def test_bytes_that_the_topic_did_not_take_are_missing_and_not_empty() -> None:
    (message,) = written([b"x" * 5_000])
    (letter,) = taken(given([shortened(REJECTED, message)])).letters.values()
    assert letter.left_out == 5_000


def test_requests_without_an_answer_and_forgotten_records_are_left_out() -> None:
    answers = given(written([b"{}"], stage=Stage.ANSWER))
    records = given(written([b"{", b"["]))

    def forgotten(generation: str, place: Place) -> bool:
        assert generation == "generation"
        return place.position == 1

    letters = taken(answers, records, forgotten=forgotten)
    assert [one.record["payload"] for one in letters.letters.values()] == [b"{"]
    assert letters.unusable == letters.damaged == 0
