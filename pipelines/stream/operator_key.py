"""The identity of an operator, its inputs, and its mode."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Mode(enum.Enum):
    """When an operator passes rows to the kernel."""

    EXACT = "exact"
    EAGER = "eager"

    def __reduce_ex__(self, _: Any) -> tuple[type[Mode], tuple[str]]:
        """Pickle by value; releases of Python differ in what they do, and jobs hold modes."""
        return type(self), (self.value,)


@dataclass(frozen=True)
class OperatorKey:
    """Identifies an operator; its state belongs to exactly this key.

    Attributes:
        view: The view's name.
        hash: The hash of the view's definition.
        shard: The shard.
        shards: The number of shards of the view.
    """

    view: str
    hash: str
    shard: int
    shards: int

    def __str__(self) -> str:
        return f"{self.view} shard {self.shard} of {self.shards}"

    @property
    def text(self) -> str:
        """The key as text, in Beam's elements and in the headers of state and messages."""
        return f"{self.view}/{self.hash}/{self.shard}/{self.shards}"

    @staticmethod
    def parse(text: str) -> OperatorKey:
        """Parse a `text`."""
        view, digest, shard, shards = text.split("/")
        return OperatorKey(view, digest, int(shard), int(shards))


@dataclass(frozen=True)
class Inputs:
    """The input partitions of an operator.

    Attributes:
        event_partitions: The number of partitions of the view's event stream.
        request_partitions: The number of partitions of the request stream.
        lateness_us: The event stream's allowed lateness: how far below its watermark a row is still
            accepted, and so how long rows are remembered.
    """

    event_partitions: int
    request_partitions: int
    lateness_us: int
