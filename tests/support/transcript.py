"""A small language for what goes into an operator and what comes out, for golden transcripts.

In, one batch a line: ``events 0 [0,2) <10: a@3=1 b@5=2`` is partition 0 of the events, positions 0
and 1, watermark 10, and two rows (key, time, number; the id is ``a@3`` unless ``#id`` follows).
``requests 0 [0,1) <10: a@8`` are requests. Blocks between blank lines come at once.

Out, one line a block: the frontier, then each answer and each publication with the view's values
(how many events, and their sum).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

import tidemill
from tests.support.driver import values_of
from tests.support.strategies import to_batch
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count
from tidemill.features.contract import TIME_MAX
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.stream.answer_parts import group_of
from tidemill.pipelines.stream.operator import Inputs, OperatorKey, Release, ShardOperator
from tidemill.pipelines.stream.sequence import (
    SequencedBatch,
    decode_batches,
    encode_batches,
    event_rows,
)
from tidemill.pipelines.stream.sequence import request_rows as prepare

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

_LINE: Final = re.compile(r"(events|requests) (\d+) \[(\d+),(\d+)\) <(-?\d+):?(.*)")
_ROW: Final = re.compile(r"(\w+)@(-?\d+)(?:=(-?\d+))?(?:#(\w+))?")


def make_operator(event_partitions: int = 1, request_partitions: int = 1, **options: Any) -> Any:
    """Make an operator of the tiny view."""
    return ShardOperator(
        key=OperatorKey("user", VIEW.hash, 0, 1),
        plan=PLAN,
        inputs=Inputs(event_partitions, request_partitions, lateness_us=10),
        **options,
    )


def parse(line: str) -> SequencedBatch:
    """Read a line of what goes in; it travels as bytes, as in the stream."""
    found = _LINE.fullmatch(line.strip())
    assert found is not None, line
    kind, *numbers, text = found.groups()
    partition, start, stop, watermark = map(int, numbers)
    parts = [_ROW.fullmatch(part) for part in text.split()]
    rows = [part.groups() for part in parts if part is not None]
    assert len(rows) == len(parts), line
    positions = list(range(stop - len(rows), stop))
    batch: pa.RecordBatch | None = None
    if rows and kind == "events":
        made = [
            {"at": int(at), "id": name or f"{key}@{at}", "key": key, "n": int(n)}
            for key, at, n, name in rows
        ]
        batch = event_rows(PLAN, VIEW, to_batch(STREAM.schema, made), positions)  # type: ignore[arg-type]
    elif rows:
        asked = [{"at": int(at), "id": i, "key": key} for i, (key, at, _, _) in enumerate(rows)]
        groups = [group_of(partition, start)] * len(rows)
        batch = prepare(PROJECT, VIEW, to_batch(REQUEST.schema, asked), positions, groups)  # type: ignore[arg-type]
    made_batch = SequencedBatch(kind == "requests", partition, start, stop, watermark, 0, batch)
    events = make_operator().event_schema
    (again,) = decode_batches(encode_batches([made_batch]), events)
    return again


@dataclass
class Player:
    """Plays a script to an operator and writes down what it does."""

    operator: ShardOperator
    asked: dict[tuple[int, int], str] = field(default_factory=dict)

    def play(self, script: str) -> list[str]:
        """Play the blocks of a script; returns a line for each."""
        blocks = [b.strip().splitlines() for b in script.strip().split("\n\n")]
        return [self.block(lines) for lines in blocks]

    def block(self, lines: list[str]) -> str:
        """Play one block."""
        batches = [parse(line) for line in lines]
        for batch, line in zip(batches, lines, strict=True):
            if batch.is_request and batch.rows is not None:
                names = line.split(":", 1)[1].split()
                at = batch.rows.column("ordinal").to_pylist()
                self.asked |= {(batch.partition, p): n for p, n in zip(at, names, strict=True)}
        release, _ = self.operator.receive(batches)
        return "nothing" if release is None else self.write(release)

    def write(self, release: Release) -> str:
        """Write a release down."""
        out = [f"frontier {release.frontier_us}"]
        answers = release.answers
        for i, values in enumerate(values_of(PLAN, answers)):
            group = answers.column("group")[i].as_py()
            name = self.asked[group >> 44, answers.column("ordinal")[i].as_py()]
            as_of = answers.column("as_of")[i].as_py()
            at = "" if name.endswith(f"@{as_of}") else f" as of {as_of}"
            out.append(f"{name}{at} is {_values(values)}")
        published = release.publications
        for i, values in enumerate(values_of(PLAN, published)):
            key, at, until, revision = (
                published.column(c)[i].as_py()
                for c in ("key", "event_timestamp", "valid_until", "revision")
            )
            end = "ever" if until == TIME_MAX else until
            out.append(f"{key} from {at} to {end} revision {revision} is {_values(values)}")
        return "; ".join(out)


def _values(values: dict[str, Any]) -> str:
    return f"{values['user__clicks']} sum {values['user__n']}"


def play(operator: ShardOperator, script: str) -> list[str]:
    """Play a script to an operator."""
    return Player(operator).play(script)
