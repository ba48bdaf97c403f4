"""Which operator: its part of the work, what it depends on, and when it lets rows go."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mode(enum.Enum):
    """When rows go to the kernel."""

    EXACT = "exact"
    EAGER = "eager"


@dataclass(frozen=True)
class OperatorKey:
    """Which part of the work an operator does; its state belongs to exactly this key.

    Attributes:
        view: The view's name.
        hash: The view's hash.
        shard: The shard.
        shards: How many shards the view has.
    """

    view: str
    hash: str
    shard: int
    shards: int

    def __str__(self) -> str:
        return f"{self.view} shard {self.shard} of {self.shards}"

    @property
    def text(self) -> str:
        """The key as it stands in Beam's elements and in the header of state and messages."""
        return f"{self.view}/{self.hash}/{self.shard}/{self.shards}"

    @staticmethod
    def parse(text: str) -> OperatorKey:
        """Read a `text`."""
        view, digest, shard, shards = text.split("/")
        return OperatorKey(view, digest, int(shard), int(shards))


@dataclass(frozen=True)
class Inputs:
    """What an operator depends on.

    Attributes:
        event_partitions: Partitions of the view's event stream.
        request_partitions: Partitions of the request stream.
        lateness_us: The event stream's allowed lateness: how far below its watermark a row may
            still be accepted, and so how long rows are remembered.
    """

    event_partitions: int
    request_partitions: int
    lateness_us: int
