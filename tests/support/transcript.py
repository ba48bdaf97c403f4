"""A small language for the input and output of an operator, for golden transcripts.

In, one batch a line: ``1 events 0 [0,2) <10: a@3=1 b@5=2`` is of poll 1 and of partition 0 of the
events, has positions 0 and 1, watermark 10, and two rows (key, time, number; the id is ``a@3``
unless ``#id`` follows). ``1 requests 0 [0,1) <10: a@8`` are requests. Blocks between blank lines
come at once.

Out, one line a release, and ``nothing`` for a block without one: the number and the frontier, then
each answer and each publication with the view's values (how many events, and their sum).

It is a short way to write what `tidemill.testing.shard_player` takes and gives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

import tidemill
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.sequence import SequencedBatch
from tidemill.testing.shard_player import event_batch, released, request_batch, shard_operator

STREAM: Final = EventStream(
    "clicks",
    schema={"at": "timestamp", "id": "string", "key": "string", "n": "int64"},
    event_time="at",
    event_id="id",
    allowed_lateness="10us",
)
VIEW: Final = FeatureView(
    "user",
    entity=Entity("user", join_key="key"),
    stream=STREAM,
    hop="10us",
    features={"clicks": count(over="20us"), "n": tidemill.sum(col("n"), over="20us")},
)
REQUEST: Final = Request(
    "asked",
    schema={"at": "timestamp", "id": "int64", "key": "string"},
    request_time="at",
    request_id="id",
)
PROJECT: Final = Project("tiny", request=REQUEST, views=[VIEW])
PLAN: Final = make_plan(VIEW)

_LINE: Final = re.compile(r"(\d+) (events|requests) (\d+) \[(\d+),(\d+)\) <(-?\d+):?(.*)")
_ROW: Final = re.compile(r"(\w+)@(-?\d+)(?:=(-?\d+))?(?:#(\w+))?")


def make_operator(event_partitions: int = 1, request_partitions: int = 1, **options: Any) -> Any:
    """Make an operator of the tiny view."""
    return shard_operator(
        VIEW,
        event_partitions=event_partitions,
        request_partitions=request_partitions,
        **options,
    )


def parse(line: str) -> SequencedBatch:
    """Parse a line of input into a batch, encoded and decoded as in the stream."""
    found = _LINE.fullmatch(line.strip())
    assert found is not None, line
    poll_text, kind, *numbers, text = found.groups()
    poll = int(poll_text)
    partition, start, stop, watermark = map(int, numbers)
    parts = [_ROW.fullmatch(part) for part in text.split()]
    rows = [part.groups() for part in parts if part is not None]
    assert len(rows) == len(parts), line
    if kind == "events":
        made = [
            {"at": int(at), "id": name or f"{key}@{at}", "key": key, "n": int(n)}
            for key, at, n, name in rows
        ]
        return event_batch(
            VIEW, made, watermark=watermark, start=start, stop=stop, partition=partition, poll=poll
        )
    asked = [{"at": int(at), "id": i, "key": key} for i, (key, at, _, _) in enumerate(rows)]
    return request_batch(
        VIEW,
        REQUEST,
        asked,
        watermark=watermark,
        start=start,
        stop=stop,
        partition=partition,
        poll=poll,
    )


@dataclass
class Player:
    """Plays a script to an operator and returns its output as lines."""

    operator: ShardOperator
    asked: dict[tuple[int, int], str] = field(default_factory=dict)

    def play(self, script: str) -> list[str]:
        """Play the blocks of a script; returns a line for each release."""
        blocks = [b.strip().splitlines() for b in script.strip().split("\n\n")]
        return [line for lines in blocks for line in self.block(lines)]

    def block(self, lines: list[str]) -> list[str]:
        """Play one block."""
        batches = [parse(line) for line in lines]
        for batch, line in zip(batches, lines, strict=True):
            if batch.is_request and batch.rows is not None:
                names = line.split(":", 1)[1].split()
                at = batch.rows.column("ordinal").to_pylist()
                self.asked |= {(batch.partition, p): n for p, n in zip(at, names, strict=True)}
        releases = self.operator.receive(batches)
        return [self.write(release) for release in releases] or ["nothing"]

    def write(self, release: Release) -> str:
        """Return the line of a release."""
        named = released(VIEW, release)
        out = [f"{named.number}: frontier {named.frontier_us}"]
        for row in _in_microseconds(named.answers):
            name = self.asked[row["partition"], row["position"]]
            at = "" if name.endswith(f"@{row['as_of']}") else f" as of {row['as_of']}"
            out.append(f"{name}{at} is {_values(row)}")
        for row in _in_microseconds(named.publications):
            end = "ever" if row["valid_until"] is None else row["valid_until"]
            span = f"from {row['event_timestamp']} to {end} revision {row['revision']}"
            out.append(f"{row['key']} {span} is {_values(row)}")
        return "; ".join(out)


def _in_microseconds(table: pa.Table) -> list[dict[str, Any]]:
    columns = {
        name: column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    rows: list[dict[str, Any]] = pa.table(columns).to_pylist()
    return rows


def _values(values: dict[str, Any]) -> str:
    return f"{values['user__clicks']} sum {values['user__n']}"


def play(operator: ShardOperator, script: str) -> list[str]:
    """Play a script to an operator."""
    return Player(operator).play(script)
