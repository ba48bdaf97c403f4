"""Jobs that an engine has lost: how often a stream resubmits one, and how long it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from tidemill.features.errors import EngineLost
from tidemill.pipelines.engines.choosing import EngineChoice
from tidemill.pipelines.engines.dataflow_run import check_service
from tidemill.pipelines.engines.flink import check_cluster
from tidemill.pipelines.engines.flink_flags import check_flags

MOST: Final = 10
"""So often a job may be lost that has not reached another savepoint."""

PATIENCE_S: Final = 180.0
"""How long a stream that has lost its job waits for the cluster, such as for a `tidemill up`."""


class Stop:
    """Whether one job of a stream is to stop: it was asked to, or something of it has failed.

    Args:
        asked: Is set when somebody asks the stream to stop.
    """

    def __init__(self, asked: threading.Event) -> None:
        self._asked, self._own = asked, threading.Event()

    def set(self) -> None:
        """Let this job stop."""
        self._own.set()

    def is_set(self) -> bool:
        """Tell whether it is to stop."""
        return self._asked.is_set() or self._own.is_set()


class Restarts:
    """Counts the jobs that were lost.

    Args:
        say: Tells a person.

    Attributes:
        count: How many were lost.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.count = 0
        self._segment: int | None = None
        self._of_segment = 0

    def check_engine(self, choice: EngineChoice) -> None:
        """Check that the engine takes a job; after a loss, wait for it.

        Raises:
            ClusterUnreachable, ServiceUnreachable, JobRefused: It does not.
            WrongBeamFlag: It does not know a flag.
        """
        if choice.dataflow is not None:
            check_service(choice.dataflow, PATIENCE_S if self.count else 0.0)
            return
        if choice.flink is None:
            return
        check_cluster(choice.flink, PATIENCE_S if self.count else 0.0)
        if not self.count:  # they do not change
            check_flags(choice.flink.job_server, choice.flink.flags)

    def begin(self, segment: int) -> None:
        """Note with which segment a job begins: one behind another savepoint has all attempts."""
        if segment != self._segment:
            self._segment, self._of_segment = segment, 0

    def note(self, lost: EngineLost) -> None:
        """Note that a job was lost.

        Raises:
            EngineLost: That was one too many.
        """
        self.count += 1
        self._of_segment += 1
        if self._of_segment > MOST:
            raise EngineLost(
                f"{lost}; {self._of_segment} jobs were lost before another savepoint: see why, and "
                "run `tidemill stream --resume`"
            ) from lost
        self._say(
            f"{lost}; the stream goes on from its last savepoint, in another job "
            f"({self._of_segment} of {MOST})"
        )
