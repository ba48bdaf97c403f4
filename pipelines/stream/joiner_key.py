"""The identity of a joiner: a shard of the stage that joins answers.

All parts of the answer to a request go to one joiner, whichever views it asks: that of the
request's partition, modulo the number of joiners.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tidemill.features.contract import Int64Array

_REQUESTS: Final = "requests"
_STATE: Final = "answers"
_OF: Final = "-of-"


@dataclass(frozen=True)
class JoinerKey:
    """Identifies a joiner; its state belongs to exactly this key.

    Attributes:
        number: The number of the joiner, from 0.
        joiners: How many there are.
    """

    number: int = 0
    joiners: int = 1

    def __str__(self) -> str:
        return f"joiner {self.number} of {self.joiners}"

    @property
    def text(self) -> str:
        """The key as text, in Beam's elements: unlike an operator's it has no slash."""
        return _REQUESTS + self._suffix

    @property
    def state_name(self) -> str:
        """The name of the file of its state."""
        return f"{_STATE}{self._suffix}.state"

    @property
    def _suffix(self) -> str:
        # One joiner alone has the names that it had before there could be more.
        return "" if self.joiners == 1 else f"-{self.number:05d}{_OF}{self.joiners:05d}"

    @staticmethod
    def parse(text: str) -> JoinerKey:
        """Parse a `text`."""
        if text == _REQUESTS:
            return JoinerKey()
        number, _, joiners = text.removeprefix(f"{_REQUESTS}-").partition(_OF)
        return JoinerKey(int(number), int(joiners))

    @staticmethod
    def of_partition(partition: int, joiners: int) -> JoinerKey:
        """Return the joiner of the requests of a partition."""
        return JoinerKey(partition % joiners, joiners)

    @staticmethod
    def all(joiners: int) -> Iterator[JoinerKey]:
        """Yield the keys of all joiners, by number."""
        return (JoinerKey(number, joiners) for number in range(joiners))


ONLY_JOINER: Final = JoinerKey()
"""The joiner of a stream that has one."""


def is_joiner_key(text: str) -> bool:
    """Tell whether a key of an element is a joiner's, and not an operator's."""
    return "/" not in text


def joiners_of(partitions: Int64Array, joiners: int) -> Int64Array:
    """Return the number of the joiner of each partition, int64 ``(rows,)``."""
    numbers: Int64Array = partitions % joiners
    return numbers
