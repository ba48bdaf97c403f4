"""The restriction of a source of polls: a splittable DoFn that sends polls in order.

A restriction is the last poll that was sent, with the positions after it, whether the source has
sent all, and whether it has stopped. It refuses to be split, because splits would break the order;
only what is left may be put off.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final, NamedTuple, Protocol

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.utils.timestamp import Timestamp

from tidemill.pipelines.io.cuts import Cut

STAY_SECONDS: Final = 0.25
"""How long a source that has sent all, and stays, takes for each call."""


class Restriction(NamedTuple):
    """Where a source is.

    Attributes:
        at: The last poll, and the positions after it.
        stopped: Whether the source has stopped.
        is_sent: Whether it has sent all; it may stay then, and send nothing more.
    """

    at: Cut
    stopped: bool = False
    is_sent: bool = False


class _Tracker(RestrictionTracker):
    """Tracks the polls that were sent; allows no split except a checkpoint of the remainder."""

    def __init__(self, restriction: Restriction) -> None:
        self._at = restriction
        self._stopped = restriction.stopped

    def current_restriction(self) -> Restriction:
        return self._at

    def try_claim(self, position: Restriction) -> bool:
        if self._stopped:
            return False
        self._at = position
        self._stopped = position.stopped
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Any, Any] | None:
        if fraction_of_remainder > 0 or self._stopped:
            return None
        self._stopped = True
        return self._at._replace(stopped=True), self._at

    def check_done(self) -> None:
        if not self._stopped:
            raise ValueError(f"the source stopped at {self._at.at} without claiming its end")

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(completed=0.0, remaining=1.0)

    def is_bounded(self) -> bool:
        return False


class RestrictionCoder(beam.coders.Coder):
    """Encodes a restriction as JSON; Beam would pickle it."""

    def encode(self, value: Restriction) -> bytes:
        """Encode a restriction."""
        return json.dumps(value).encode()

    def decode(self, encoded: bytes) -> Restriction:
        """Decode a restriction."""
        (number, positions), stopped, is_sent = json.loads(encoded)
        return Restriction(Cut(number, tuple(positions)), stopped, is_sent)

    def is_deterministic(self) -> bool:
        """Return True: equal restrictions have equal bytes."""
        return True


class _Provider(RestrictionProvider):
    """Decodes the initial restriction from the element."""

    def initial_restriction(self, element: bytes) -> Restriction:
        return RestrictionCoder().decode(element)

    def restriction_coder(self) -> RestrictionCoder:
        return RestrictionCoder()

    def create_tracker(self, restriction: Any) -> _Tracker:
        return _Tracker(restriction)

    def restriction_size(self, element: Any, restriction: Any) -> int:
        return 1

    def truncate(self, element: Any, restriction: Any) -> None:
        return None


class WatermarkCoder(beam.coders.Coder):
    """Encodes a watermark, or None, in microseconds.

    Beam would pickle it; Beam's coder for timestamps keeps milliseconds only.
    """

    def encode(self, value: Timestamp | None) -> bytes:
        """Encode a watermark; None becomes no bytes."""
        return b"" if value is None else value.micros.to_bytes(8, "big", signed=True)

    def decode(self, encoded: bytes) -> Timestamp | None:
        """Decode a watermark."""
        if not encoded:
            return None
        return Timestamp(micros=int.from_bytes(encoded, "big", signed=True))

    def is_deterministic(self) -> bool:
        """Return True: equal watermarks have equal bytes."""
        return True


class _Watermarks(WatermarkEstimatorProvider):
    """Makes watermark estimators that the DoFn sets."""

    def initial_estimator_state(self, element: Any, restriction: Any) -> Timestamp | None:
        return None

    def create_watermark_estimator(self, state: Timestamp | None) -> ManualWatermarkEstimator:
        return ManualWatermarkEstimator(state)

    def estimator_state_coder(self) -> WatermarkCoder:
        return WatermarkCoder()


PROVIDER: Final = _Provider()
"""Takes the first restriction from the element, which is an encoded one."""
WATERMARKS: Final = _Watermarks()
"""Makes watermark estimators that the DoFn sets."""


class Watching(Protocol):
    """Tells a source whether its job goes on."""

    def check(self) -> None:
        """Check that the source may go on.

        Raises:
            EngineLost: It must stop.
        """


def stays(watch: Watching, tracker: Any, *, is_sent: bool) -> bool:
    """Tell whether a source of an attempt has sent all; then it stays for a moment, and goes on.

    Args:
        watch: Tells whether its job goes on.
        tracker: Its tracker.
        is_sent: What its restriction says.

    Raises:
        EngineLost: It must stop.
    """
    watch.check()
    if is_sent:
        time.sleep(STAY_SECONDS)
        tracker.defer_remainder()
    return is_sent
