"""Writing a bundle's parcels to an online store that fails, loses writes, or is unavailable.

The promises:

* While the store is unavailable (`StoreUnavailable`), the write is retried for `give_up_after_us`,
  with exponential back-off and full jitter; then the error is raised and the bundle fails. The
  caller waits, so no writes queue up, and no later write of the shard overtakes. The outage is
  logged, at most once in `SAY_EVERY_S`, and again when it ends.
* If the store has lost writes of a part, missing records are made again, and the part's frontier is
  withdrawn, so that readers see that the age of its rows is unknown. Then the whole shard, which
  contains the refused rows, is written in their place, before the bundle ends. A store that loses
  writes again meanwhile gets it again, for `give_up_after_us` at most.
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
from typing import Final, NamedTuple, TypeVar

import tenacity

from tidemill.features.contract import SECOND, TIME_MIN
from tidemill.features.errors import (
    BehindReaders,
    LostPublications,
    NoKeySpace,
    StoreUnavailable,
)
from tidemill.pipelines.config.online_section import GIVE_UP_AFTER_US
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.serving.online.database import OnlineDatabase, Parcel

SAY_EVERY_S: Final = 10.0
"""How often a store's failure is logged, at most."""

_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 5.0

_T = TypeVar("_T")
WholeParcels = Callable[[str, int], Sequence[Parcel]]
"""Returns the parcels of a view's shard with all of its rows."""

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
        fills: The fills of the run, as they were when it began.
        give_up_after_us: How long the store may be unavailable.

    Attributes:
        fills: The fills, as they are now: parcels are made for these.
    """

    def __init__(
        self,
        database: OnlineDatabase,
        fills: RunFills,
        give_up_after_us: int = GIVE_UP_AFTER_US,
    ) -> None:
        self.fills = fills
        self._database = database
        self._give_up_after_us = give_up_after_us
        # What readers see of the old fills: no switch is tried before a parcel has reached it.
        self._shown_us = TIME_MIN

    def write(self, parcels: Sequence[Parcel], whole: WholeParcels) -> None:
        """Write parcels, and whole shards where the store has lost writes; switch readers if due.

        Args:
            parcels: The parcels of a bundle.
            whole: Makes the parcels of a whole shard, as of the bundle's last release, for `fills`.

        Raises:
            StoreUnavailable: The store was unavailable for too long.
            LostPublications: It has lost writes again and again.
            NoKeySpace: It was emptied again and again.
            SupersededWriter: Another writer has taken a fill.
            ConflictingPublication: A publication contradicts the one in the store.
            StoreError: The store refuses the write.
        """
        refused = self._offer(parcels)
        if refused:
            self._mend(refused, whole)
        if self.fills.unread:
            self._patiently(lambda: self._switch(parcels))

    def _patiently(self, action: Callable[[], _T]) -> _T:
        return retry_while_unavailable(action, self._database.name, self._give_up_after_us)

    def _offer(self, parcels: Sequence[Parcel]) -> list[_RefusedParcel]:
        """Write parcels; return those that the store refuses because it has lost writes."""
        return self._patiently(lambda: self._offered(parcels))

    def _offered(self, parcels: Sequence[Parcel]) -> list[_RefusedParcel]:
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
            except (LostPublications, NoKeySpace) as error:
                refused.append(_RefusedParcel(parcel, error))
        return refused

    def _publish_alone(self, parcel: Parcel) -> None:
        try:
            self._database.publish([self._as_now(parcel)])
        except NoKeySpace as error:
            _log.warning(
                "the online store was emptied; its key spaces are created again: %s", error
            )
            self._restore()
            self._database.publish([self._as_now(parcel)])

    def _mend(self, refused: list[_RefusedParcel], whole: WholeParcels) -> None:
        """Write the whole shards of refused parcels, until none is refused."""
        deadline_s = time.monotonic() + self._give_up_after_us / SECOND
        waits_s = _FIRST_WAIT_S
        while True:
            self._patiently(self._look_again)
            for parcel, _ in refused:
                self._patiently(lambda parcel=parcel: self._withdraw(self._as_now(parcel)))  # type: ignore[misc]
            for _, error in refused:
                _log.warning("the whole shard is published again: %s", error)
            shards = list(dict.fromkeys((one.space.view, one.shard) for one, _ in refused))
            lost = self._offer([parcel for shard in shards for parcel in whole(*shard)])
            for view, shard in shards:
                if (view, shard) not in {(one.space.view, one.shard) for one, _ in lost}:
                    _log.warning(
                        "%s, view %s, shard %d: the lost writes are repaired",
                        self._database.name,
                        view,
                        shard,
                    )
            if not lost:
                return
            if time.monotonic() > deadline_s:
                raise lost[0].error
            time.sleep(waits_s)
            waits_s = min(2 * waits_s, _LONGEST_WAIT_S)
            refused = lost

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


class _RefusedParcel(NamedTuple):
    """A parcel that the store refuses because it has lost writes, and what it says."""

    parcel: Parcel
    error: LostPublications | NoKeySpace
