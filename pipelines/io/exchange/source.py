"""The source of a job whose workers do not share the program's disk: the program sends polls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.io.poll_source import SendPolls, sent_polls


class _Receive(SendPolls):
    """Sends on what the program sends; it stays when it has sent all."""

    def __init__(self, place: ExchangePlace) -> None:
        self._place = place

    def setup(self) -> None:
        self.polls = self.watch = self._place.here().polls()


@dataclass(eq=False)
class ReceivePolls(beam.PTransform):
    """The polls that a program sends (`program_end.ProgramEnd.send`), as an unbounded collection.

    Output, by name: ``polls``, and with the tag `poll_source.REJECTED` the records that were
    rejected while they were read.

    Attributes:
        place: Where the job and its program meet.
        start: The poll before the first.
        by_impulses: Whether the source is called by impulses (`poll_source.SendByImpulses`).
    """

    place: ExchangePlace
    start: Cut
    by_impulses: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, begin: Any) -> Any:
        """Wire the source."""
        return sent_polls(
            begin, self.start, "Receive", _Receive(self.place), by_impulses=self.by_impulses
        )
