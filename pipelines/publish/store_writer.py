"""Writing a bundle's parcels to an online store that fails, loses writes, or is unavailable.

The promises:

* While the store is unavailable (`StoreUnavailable`), the write is retried for `give_up_after_us`,
  with exponential back-off and full jitter; then the error is raised and the bundle fails. The
  caller waits, so no writes queue up, and no later write of the shard overtakes. The outage is
  logged, at most once in `SAY_EVERY_S`, and again when it ends.
* If the store has lost writes of a part, later publications of the part are not written. Missing
  records are made again, the part's frontier is withdrawn, so that readers see that the age of its
  rows is unknown, and the loss is noted (`pipelines.stream.lost_writes`): the next release
  publishes the whole shard, which contains the refused rows. If no operator in this process can
  repair the loss, the error is raised.
* Readers are switched to the run's fills by the first write after all of them have caught up, also
  again if the store forgot it.
* Other errors (a contradiction, a superseded writer, a wrong password) are raised at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import tenacity

from tidemill.features.contract import SECOND, TIME_MIN
from tidemill.features.definitions import Project
from tidemill.features.errors import (
    BehindReaders,
    LostPublications,
    NoKeySpace,
    StoreError,
    StoreUnavailable,
)
from tidemill.pipelines.config.online_section import GIVE_UP_AFTER_US
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.stream.lost_writes import LOST_WRITES
from tidemill.serving.online.database import OnlineDatabase, Parcel

SAY_EVERY_S: Final = 10.0
"""How often a store's failure is logged, at most."""

_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 5.0
_OVERTAKEN_TRIES: Final = 5
"""How often a refused parcel is tried: its predecessor may still be on its way."""

_T = TypeVar("_T")

_log: Final = logging.getLogger(__name__)
# Full jitter: a random wait between zero and the back-off, so that workers do not retry together.
_BACK_OFF: Final = tenacity.wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S)


class Outages:
    """Logs the outages of stores; thread-safe.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def failed(self, store: str, error: StoreUnavailable, give_up_after_us: int) -> None:
        """Note a failed write; log it, unless the last log line is newer than `SAY_EVERY_S`."""
        with self._lock:
            now = self._clock()
            began = self._began.setdefault(store, now)
            if now - self._said.get(store, float("-inf")) < SAY_EVERY_S:
                return
            self._said[store] = now
        _log.warning(
            "the online store takes no writes for %.0f s now (the stream waits, and gives up "
            "after %g s: online_store.give_up_after): %s",
            now - began,
            give_up_after_us / SECOND,
            error,
        )

    def over(self, store: str) -> None:
        """Note a successful write; log it if the store was unavailable."""
        with self._lock:
            began = self._began.pop(store, None)
            now = self._clock()
        if began is not None:
            _log.warning("%s takes writes again, after %.1f s", store, now - began)


OUTAGES: Final = Outages()
"""The outages of this process's stores."""


def retry_while_unavailable(
    action: Callable[[], _T], store: str, give_up_after_us: int = GIVE_UP_AFTER_US
) -> _T:
    """Call a function, and retry it while the store is unavailable.

    Args:
        action: The function; it must be idempotent.
        store: The store's name.
        give_up_after_us: After this many microseconds the error is raised.

    Raises:
        StoreUnavailable: The store was unavailable for too long.
    """

    def say(state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        assert isinstance(error, StoreUnavailable)
        OUTAGES.failed(store, error, give_up_after_us)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreUnavailable),
        wait=_BACK_OFF,
        stop=tenacity.stop_after_delay(give_up_after_us / SECOND),
        before_sleep=say,
        reraise=True,
    )
    try:
        result = retrying(action)
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error} (given up after {give_up_after_us / SECOND:g} s: "
            "online_store.give_up_after); once the store takes writes again, continue from the "
            "last states: `tidemill stream --resume`"
        ) from error
    OUTAGES.over(store)
    return result


class StoreWriter:
    """Writes parcels of a run; one for each thread.

    Args:
        database: The online store.
        project: The project.
        fills: The fills of the run, as they were when it began.
        run: The run whose operators can repair lost writes; None if there are none.
        give_up_after_us: How long the store may be unavailable.

    Attributes:
        fills: The fills, as they are now: parcels are made for these.
    """

    def __init__(
        self,
        database: OnlineDatabase,
        project: Project,
        fills: RunFills,
        run: str | None = None,
        give_up_after_us: int = GIVE_UP_AFTER_US,
    ) -> None:
        self.fills = fills
        self._database = database
        self._project = project
        self._run = run
        self._give_up_after_us = give_up_after_us
        # What readers see of the old fills: no switch is tried before a parcel has reached it.
        self._shown_us = TIME_MIN

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Write parcels, or note that the store has lost earlier writes; switch readers if due.

        Args:
            parcels: The parcels of a bundle.

        Raises:
            StoreUnavailable: The store was unavailable for too long.
            LostPublications: It has lost writes that no operator in this process can repair.
            NoKeySpace: It was emptied, and no operator in this process can repair that.
            SupersededWriter: Another writer has taken a fill.
            ConflictingPublication: A publication contradicts the one in the store.
            StoreError: The store refuses the write.
        """
        try:
            self._write(parcels)
            if self.fills.unread:
                self._patiently(lambda: self._switch(parcels))
        except StoreError as error:
            if self._run is not None:
                LOST_WRITES.fail(self._run, error)
            raise

    def _write(self, parcels: Sequence[Parcel]) -> None:
        refused = self._offer(parcels)
        for number in range(1, _OVERTAKEN_TRIES):
            # Noted losses need no retry.
            if all(self._is_known(parcel) for parcel, _ in refused):
                break
            time.sleep(_FIRST_WAIT_S * 2 ** (number - 1))
            refused = self._offer([parcel for parcel, _ in refused])
        lost = {(parcel.space.view, parcel.shard) for parcel, _ in refused}
        for parcel in parcels:
            if (parcel.space.view, parcel.shard) not in lost:
                self._is_written(parcel)
        for parcel, error in refused:
            self._note(parcel, error)

    def _patiently(self, action: Callable[[], _T]) -> _T:
        return retry_while_unavailable(action, self._database.name, self._give_up_after_us)

    def _offer(self, parcels: Sequence[Parcel]) -> list[tuple[Parcel, LostPublications]]:
        """Write parcels; return those that the store refuses because it has lost writes."""
        return self._patiently(lambda: self._offered(parcels))

    def _offered(self, parcels: Sequence[Parcel]) -> list[tuple[Parcel, LostPublications]]:
        try:
            self._database.publish(parcels)
        except (LostPublications, NoKeySpace):
            pass  # write them one by one, to find which are refused
        else:
            return []
        refused = []
        for parcel in parcels:
            try:
                self._publish_alone(parcel)
            except LostPublications as error:
                refused.append((parcel, error))
        return refused

    def _publish_alone(self, parcel: Parcel) -> None:
        try:
            self._database.publish([parcel])
        except NoKeySpace as error:
            if not self._can_mend(parcel):
                raise
            _log.warning(
                "the online store was emptied; its key spaces are created again: %s", error
            )
            self._restore()
            self._database.publish([self._as_now(parcel)])

    def _restore(self) -> None:
        """Make the records of the run's fills again that the store has lost."""
        fills = list(self.fills.fills.values())
        for fill in fills:
            assert fill.writer is not None
            self._database.restore([fill], fill.writer)
        self._look_again()

    def _look_again(self) -> None:
        """Read the records of the run's fills: the store may have lost a switch."""
        spaces = [fill.space for fill in self.fills.fills.values()]
        self.fills = self.fills.updated(self._database.fills(spaces))

    def _as_now(self, parcel: Parcel) -> Parcel:
        return replace(parcel, fill=self.fills.fills[parcel.space.view])

    def _switch(self, parcels: Sequence[Parcel]) -> None:
        """Switch readers to the run's fills if these have caught up with what readers see."""
        reached = max((parcel.frontier_us or TIME_MIN for parcel in parcels), default=TIME_MIN)
        if reached < self._shown_us:
            return
        fills = list(self.fills.fills.values())
        try:
            switched = self._database.switch(fills, self.fills.writer(fills[0].space.view))
        except BehindReaders as error:
            self._shown_us = error.shown_us
        except NoKeySpace as error:
            _log.warning("readers are not switched yet: %s", error)
        else:
            self.fills = self.fills.updated(switched)
            _log.info("%s: readers see the fills of this run", self._database.name)

    def _is_written(self, parcel: Parcel) -> None:
        view, shard = parcel.space.view, parcel.shard
        if self._run is not None and LOST_WRITES.close(self._run, view, shard):
            _log.warning(
                "%s, key space %s, shard %d: the lost writes are repaired",
                self._database.name,
                parcel.space.name,
                shard,
            )

    def _can_mend(self, parcel: Parcel) -> bool:
        return self._run is not None and LOST_WRITES.can_mend(
            self._run, parcel.space.view, parcel.shard
        )

    def _is_known(self, parcel: Parcel) -> bool:
        return self._run is not None and LOST_WRITES.is_open(
            self._run, parcel.space.view, parcel.shard
        )

    def _note(self, parcel: Parcel, error: LostPublications) -> None:
        if self._run is None or not self._can_mend(parcel):
            raise error
        self._look_again()
        if not self._is_known(parcel):
            LOST_WRITES.note(self._run, parcel.space.view, parcel.shard)
            _log.warning("the next release publishes the whole shard: %s", error)
        self._patiently(lambda: self._withdraw(parcel))

    def _withdraw(self, parcel: Parcel) -> None:
        """Take the frontier of a part that has lost writes, so that its age is unknown."""
        try:
            (states,) = self._database.part_states([parcel.fill])
        except NoKeySpace:
            return  # it has no frontier either
        found = states[parcel.part]
        reached = parcel.frontier_us
        if found.frontier_us is not None and reached is not None and found.frontier_us <= reached:
            self._database.withdraw(parcel, found)
