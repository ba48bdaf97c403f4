"""Writing a bundle's parcels to an online store that fails, forgets, or is away for a while.

What is promised:

* A store that is away (`StoreUnavailable`) is tried again, with exponential back-off and full
  jitter, until it takes the parcels or `give_up_after_us` is over: then the error is raised, and
  the bundle fails. The caller waits meanwhile, so nothing queues up here, and nothing of the same
  shard can overtake. What is wrong is logged, at most once in `SAY_EVERY_S`, and when it is over.
* A store that has lost writes is not written to over the hole. Key spaces that are gone are made
  again, and the hole is noted (`pipelines.stream.lost_writes`): the next release of the shard
  publishes all of it, so what was refused is in there. Until then the shard's frontier, by which
  readers judge age, stays where the store left it. Where nobody here can mend it, the error is
  raised.
* Anything else (a contradiction, a wrong password) is raised at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import tenacity

from tidemill.features.contract import SECOND
from tidemill.features.definitions import Project
from tidemill.features.errors import LostPublications, NoKeySpace, StoreError, StoreUnavailable
from tidemill.pipelines.config.online_section import GIVE_UP_AFTER_US
from tidemill.pipelines.stream.lost_writes import LOST_WRITES
from tidemill.serving.online.database import OnlineDatabase, Parcel
from tidemill.serving.online.rows import KeySpace

SAY_EVERY_S: Final = 10.0
"""How often a store's failure is logged, at most."""

_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 5.0
_OVERTAKEN_TRIES: Final = 5
"""How often a refused parcel is offered again: the one that it overtook may be under way."""

_T = TypeVar("_T")

_log: Final = logging.getLogger(__name__)
# Full jitter: anything between none of it and all, so that workers do not come back together.
_BACK_OFF: Final = tenacity.wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S)


class Outages:
    """What this process's log says of stores that are away; thread-safe.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def failed(self, store: str, error: StoreUnavailable, give_up_after_us: int) -> None:
        """Note a write that failed, and say so unless it was said just now."""
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
        """Note a write that was taken; say so where the store was away."""
        with self._lock:
            began = self._began.pop(store, None)
            now = self._clock()
        if began is not None:
            _log.warning("%s takes writes again, after %.1f s", store, now - began)


OUTAGES: Final = Outages()
"""This process's."""


def retry_while_unavailable(
    action: Callable[[], _T], store: str, give_up_after_us: int = GIVE_UP_AFTER_US
) -> _T:
    """Do something with a store, again and again while it is away.

    Args:
        action: What to do; the same again does no harm.
        store: The store's name.
        give_up_after_us: After how long its error is raised.

    Raises:
        StoreUnavailable: The store was away for that long.
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
            "online_store.give_up_after); once the store takes writes again, go on from the last "
            "states: `tidemill stream --resume`"
        ) from error
    OUTAGES.over(store)
    return result


@dataclass(frozen=True)
class StoreWriter:
    """Writes parcels of a run.

    Attributes:
        database: Where to.
        project: Whose key spaces are made again.
        run: The run whose operators can fill holes; None where there are none.
        give_up_after_us: How long the store may be away.
    """

    database: OnlineDatabase
    project: Project
    run: str | None = None
    give_up_after_us: int = GIVE_UP_AFTER_US

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Write parcels, or note that the store has lost what they build on.

        Args:
            parcels: Those of a bundle.

        Raises:
            StoreUnavailable: The store was away for too long.
            LostPublications: It has lost writes, and nobody here can mend it.
            NoKeySpace: It was emptied, and nobody here can mend it.
            ConflictingPublication: A publication contradicts the one that stands.
            StoreError: The store refuses.
        """
        try:
            self._write(parcels)
        except StoreError as error:
            if self.run is not None:
                LOST_WRITES.fail(self.run, error)
            raise

    def _write(self, parcels: Sequence[Parcel]) -> None:
        refused = self._offer(parcels)
        for number in range(1, _OVERTAKEN_TRIES):
            # A hole that is known needs no second look.
            if all(self._is_known(parcel) for parcel, _ in refused):
                break
            time.sleep(_FIRST_WAIT_S * 2 ** (number - 1))
            refused = self._offer([parcel for parcel, _ in refused])
        for parcel, error in refused:
            self._note(parcel, error)

    def _offer(self, parcels: Sequence[Parcel]) -> list[tuple[Parcel, LostPublications]]:
        """Write what the store takes; return what it refuses, since it has lost writes."""
        return retry_while_unavailable(
            lambda: self._offered(parcels), self.database.name, self.give_up_after_us
        )

    def _offered(self, parcels: Sequence[Parcel]) -> list[tuple[Parcel, LostPublications]]:
        try:
            self.database.publish(parcels)
        except (LostPublications, NoKeySpace):
            pass  # which of them are refused shows one by one
        else:
            for parcel in parcels:
                self._is_written(parcel)
            return []
        refused = []
        for parcel in parcels:
            try:
                self._publish_alone(parcel)
            except LostPublications as error:
                refused.append((parcel, error))
            else:
                self._is_written(parcel)
        return refused

    def _publish_alone(self, parcel: Parcel) -> None:
        try:
            self.database.publish([parcel])
        except NoKeySpace as error:
            if not self._can_mend(parcel):
                raise
            _log.warning("the online store was emptied; its key spaces are made again: %s", error)
            spaces = [KeySpace.of(self.project.name, view) for view in self.project.views]
            self.database.create(spaces)
            self.database.publish([parcel])

    def _is_written(self, parcel: Parcel) -> None:
        view, shard = parcel.space.view, parcel.shard
        if self.run is not None and LOST_WRITES.close(self.run, view, shard):
            _log.warning(
                "%s, key space %s, shard %d: the writes that it had lost are there again",
                self.database.name,
                parcel.space.name,
                shard,
            )

    def _can_mend(self, parcel: Parcel) -> bool:
        return self.run is not None and LOST_WRITES.can_mend(
            self.run, parcel.space.view, parcel.shard
        )

    def _is_known(self, parcel: Parcel) -> bool:
        return self.run is not None and LOST_WRITES.is_open(
            self.run, parcel.space.view, parcel.shard
        )

    def _note(self, parcel: Parcel, error: LostPublications) -> None:
        if self.run is None or not self._can_mend(parcel):
            raise error
        if not self._is_known(parcel):
            LOST_WRITES.note(self.run, parcel.space.view, parcel.shard)
            _log.warning("the next release publishes the whole shard: %s", error)
