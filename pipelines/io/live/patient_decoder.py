"""A decoder that waits for a schema registry which is away, as a reader waits for its broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from tidemill.features.errors import RegistryUnavailable
from tidemill.pipelines.io.kafka.reader import PATIENCE_S
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import Decoded, Decoder

_AGAIN_S: Final = 1.0


class PatientDecoder:
    """Decodes as another decoder does, and waits while the registry does not answer.

    Args:
        decoder: The other one; it asks a registry for schemas.
        ends: Tells whether nobody wants the rows any more; then there is no waiting.
        say: Is told that the registry is away, and that it is back.
        patience_s: How long the registry may be away, in seconds.
    """

    def __init__(
        self,
        decoder: Decoder,
        ends: Callable[[], bool],
        say: Callable[[str], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._decoder, self._ends, self._say = decoder, ends, say
        self._patience_s = patience_s

    def decode(self, messages: Messages, first_position: int) -> Iterator[Decoded]:
        """Make rows of messages, all of them before the first is given; see `decoding.Decoder`.

        Raises:
            RegistryUnavailable: The registry is away for longer than the patience, or the rows are
                not wanted any more.
        """
        away_since_s: float | None = None
        while True:
            began_s = time.monotonic()
            try:
                found = list(self._decoder.decode(messages, first_position))
            except RegistryUnavailable as error:
                if away_since_s is None:
                    away_since_s = began_s
                    self._say(
                        f"{error}; the stream waits, and gives up after {self._patience_s:g} s"
                    )
                if self._ends():
                    raise
                if time.monotonic() - away_since_s >= self._patience_s:
                    raise RegistryUnavailable(f"{error} (for {self._patience_s:g} s)") from error
                time.sleep(_AGAIN_S)
            else:
                break
        if away_since_s is not None:
            away_s = time.monotonic() - away_since_s
            self._say(f"the schema registry answers again, after {away_s:.1f} s")
        yield from found
