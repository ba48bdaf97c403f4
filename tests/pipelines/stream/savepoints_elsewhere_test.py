"""Savepoints of an operator that meets its program in an exchange: its base travels once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill import Entity, EventStream, FeatureView, col, count, last
from tidemill.features.contract import MINUTE, SECOND
from tidemill.features.kernel.encoding import encode
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.program_end import exchange
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.savepoint_files import MOST_PIECES, SavepointFiles, join_pieces
from tidemill.pipelines.stream.state_files import read_handoff, state_path, write_handoff
from tidemill.pipelines.stream.state_places import ON_DISK, InExchange, StatePlace
from tidemill.testing import ShardPlayer

PAYMENTS = EventStream(
    "payments",
    event_time="at",
    event_id="id",
    schema={"id": "string", "at": "timestamp", "card": "string", "amount": "float64"},
)
VIEW = FeatureView(
    "by_card",
    entity=Entity("card"),
    stream=PAYMENTS,
    hop="1m",
    features={"payments_1h": count(over="1h"), "last_amount": last(col("amount"), over="1h")},
)
BEGIN = 1_790_000_000 * SECOND // MINUTE * MINUTE
CARDS, NEW = 20_000, 20
WAIT_S = 60.0


def rows(poll: int, number: int) -> pa.Table:
    at = [BEGIN + poll * MINUTE + n * 50 * SECOND // number for n in range(number)]
    return pa.table(
        {
            "id": [f"{poll}-{n}" for n in range(number)],
            "at": pa.array(at, pa.timestamp("us", "UTC")),
            "card": [f"c-{n * 37 % CARDS}" for n in range(number)],
            "amount": [float(n) for n in range(number)],
        }
    )


class Stream:
    """The polls of a stream, and an operator that takes them."""

    def __init__(self) -> None:
        self.player = ShardPlayer(VIEW, request_partitions=0)
        self._poll(0, CARDS)
        self.player.receive(*self._first)

    def _poll(self, number: int, events: int) -> None:
        until = BEGIN + number * MINUTE + 55 * SECOND
        self._first = [self.player.events(rows(number, events), watermark=until)]

    def operator(self) -> ShardOperator:
        return ShardPlayer(VIEW, request_partitions=0).operator

    def run(self, stops: Path, segments: range, place: StatePlace) -> ShardOperator:
        """Go on from a savepoint, and keep some more."""
        operator = self.operator()
        begun = read_handoff(stops / f"{segments[0] - 1:05d}", operator, place)
        files = SavepointFiles.after(begun, place)
        for segment in segments:
            self._poll(segment, NEW)
            files.add(operator.receive(self._first))
            files.keep(stops / f"{segment:05d}", operator)
        return operator


def test_a_base_travels_once_and_the_states_are_those_of_a_shared_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"files": 0, "up": 0, "down": 0}
    put = Objects.put

    def counted(self: Objects, name: str, *pieces: Any) -> None:
        sent[name.split("/")[0]] += sum(memoryview(piece).nbytes for piece in pieces)
        put(self, name, *pieces)

    monkeypatch.setattr(Objects, "put", counted)
    jobs = range(1, 3 * MOST_PIECES), range(3 * MOST_PIECES, 3 * MOST_PIECES + 5)
    here, there = tmp_path / "here", tmp_path / "root" / "there"
    told = []
    streams = Stream(), Stream()
    for stream, stops in zip(streams, (here, there), strict=True):
        write_handoff(stops / "00000", stream.player.operator)
    for job, segments in enumerate(jobs):
        before = sent["up"]
        streams[0].run(here, segments, ON_DISK)
        url, root = f"file://{tmp_path}/exchange", tmp_path / "root"
        with exchange(
            url, root, "id", [there], lambda *_: None, join_pieces, f"job-{job}"
        ) as program:
            program.give(there / f"{segments[0] - 1:05d}")
            end = program.place.here()
            program.take()
            operator = streams[1].run(there, segments, InExchange(program.place))
            wanted = state_path(there / f"{segments[-1]:05d}", operator.key)
            deadline_s = time.monotonic() + WAIT_S
            while not wanted.exists():
                program.check()
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            end.close()
        told.append(sent["up"] - before)
        for segment in (segments[0], segments[-1]):
            found = []
            for stops in (here, there):
                restored = streams[0].operator()
                read_handoff(stops / f"{segment:05d}", restored)
                found.append((restored.state, restored.number, restored.expected))
            assert found[0][1:] == found[1][1:]
            assert encode(found[0][0]) == encode(found[1][0])
    base = sum(path.stat().st_size for path in (there / "00001").glob("*.base-*"))
    assert base > 1_000_000
    assert base < told[0] < 2 * base
    assert told[1] < base / 4
    names = [path.name for path in (there / f"{jobs[1][-1]:05d}").iterdir()]
    assert sum(".base-" in name for name in names) == 1
    assert 1 < sum(".since-" in name for name in names) <= MOST_PIECES
