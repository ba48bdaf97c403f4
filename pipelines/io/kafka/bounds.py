"""Keeping what a poll gives within its bounds: the surplus waits, in order, for the next poll."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable

from tidemill.pipelines.io.kafka.client import Partition
from tidemill.pipelines.io.messages import Messages


class Surplus:
    """Messages that were taken from the client and not given out yet."""

    def __init__(self) -> None:
        self._waiting: deque[Messages] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, taken: Iterable[Messages]) -> None:
        """Add messages after those that wait."""
        self._waiting.extend(taken)

    def clear(self) -> None:
        """Drop all."""
        self._waiting.clear()

    def positions(self) -> dict[Partition, int]:
        """Return the offset of the first message that waits, of each partition."""
        firsts: dict[Partition, int] = {}
        for messages in self._waiting:
            where = Partition(messages.topic, messages.partition)
            firsts.setdefault(where, int(messages.offsets[0]))
        return firsts

    def give(
        self, max_bytes: int, max_messages: int, without: frozenset[Partition]
    ) -> list[Messages]:
        """Remove and return the first messages, up to the bounds and at least one.

        Args:
            max_bytes: Most bytes of keys, values and headers.
            max_messages: Most messages.
            without: Partitions whose messages go on waiting.
        """
        given: list[Messages] = []
        kept: deque[Messages] = deque()
        while self._waiting and max_messages > 0:
            messages = self._waiting.popleft()
            if Partition(messages.topic, messages.partition) in without:
                kept.append(messages)
                continue
            count, size = _fitting(messages, max_bytes, max_messages, at_least=not given)
            if count:
                given.append(messages if count == len(messages) else _part(messages, 0, count))
            max_messages -= count
            max_bytes -= size
            if count < len(messages):
                self._waiting.appendleft(_part(messages, count, len(messages)))
                break
        self._waiting.extendleft(reversed(kept))
        return given


def _fitting(
    messages: Messages, max_bytes: int, max_messages: int, at_least: int
) -> tuple[int, int]:
    """Return how many messages fit, and their bytes."""
    size = bytes_of(messages)
    if size <= max_bytes and len(messages) <= max_messages:
        return len(messages), size
    count = total = 0
    for key, value, headers in zip(messages.keys, messages.values, messages.headers, strict=True):
        size = len(key or b"") + len(value or b"") + _headers_size(headers)
        if count >= max_messages or (total + size > max_bytes and count >= at_least):
            break
        count += 1
        total += size
    return count, total


def bytes_of(messages: Messages) -> int:
    """Return the bytes of keys, values and headers of messages; the loops run in C."""
    texts = itertools.chain(messages.keys, messages.values)
    size = sum(map(len, filter(None, texts)))
    return size + sum(map(_headers_size, filter(None, messages.headers)))


def _headers_size(headers: Iterable[tuple[str, bytes | None]]) -> int:
    return sum(len(name) + len(value or b"") for name, value in headers)


def _part(messages: Messages, start: int, end: int) -> Messages:
    return Messages(
        messages.topic,
        messages.partition,
        messages.offsets[start:end],
        messages.timestamps_us[start:end],
        messages.keys[start:end],
        messages.values[start:end],
        messages.headers[start:end],
    )
