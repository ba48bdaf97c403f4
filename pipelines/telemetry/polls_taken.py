"""How far the operators of a stream are: what bounds how far its source goes ahead of them.

Where source and operators share a process, the answer is that of this instant. Where they do not,
it is what the others have written to their files (`pipelines.telemetry.taken_files`), and some
milliseconds old: the source then waits a little longer than it must, and never goes further ahead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from tidemill.pipelines.telemetry.metrics import POLLS_TAKEN
from tidemill.pipelines.telemetry.stage_figures import FiguresPlace
from tidemill.pipelines.telemetry.taken_files import read_taken

_LOOK_EVERY_S: Final = 0.005


@dataclass
class PollsTaken:
    """Tells how far the operators are; can be pickled.

    Attributes:
        place: Where they report.
    """

    place: FiguresPlace
    _looked_s: float = field(default=float("-inf"), init=False)
    _seen: int = field(default=0, init=False)

    def __call__(self) -> int:
        """Return the number of the last poll that an operator has taken; 0 for none."""
        here = self.place.here().figures.highest(POLLS_TAKEN)
        if here is not None:
            return int(here)
        now = time.monotonic()
        if self.place.folder is not None and now - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now
            self._seen = max(self._seen, read_taken(self.place.folder))
        return self._seen

    def __getstate__(self) -> FiguresPlace:
        """Leave out what this process has seen: the clock of another one differs."""
        return self.place

    def __setstate__(self, place: FiguresPlace) -> None:
        """Begin anew."""
        self.__init__(place)  # type: ignore[misc]
