"""Watching the topics of a reader from a thread: are they the same, and is the broker there?

A client goes on silently where a topic was deleted and made again, and where the broker does not
answer. So a thread asks for the topics' ids every second. `check` raises what it found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from tidemill.features.errors import BrokerError, BrokerUnreachable, NoSuchTopic, RecreatedTopic
from tidemill.pipelines.io.kafka.client import Asker, Topic

PERIOD_S: Final = 1.0
_SURE: Final = 2
"""A topic is gone when it was missing this often: a broker that starts may not know it yet."""


class Watch:
    """Compares the ids of topics with those that they had at first.

    Args:
        asker: Asks the cluster.
        why_away: Raises the exact reason when the broker cannot be reached.
        patience_s: How long the broker may be away, in seconds.
    """

    def __init__(self, asker: Asker, why_away: Callable[[], None], patience_s: float) -> None:
        self._asker = asker
        self._why_away = why_away
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}
        self._failure: BaseException | None = None
        self._missing = 0
        self._away_since_s: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="kafka-watch")
        self._thread.start()

    def begin(self, topics: Mapping[str, Topic]) -> None:
        """Watch these topics, which are right now, and no others."""
        with self._lock:
            self._ids = {name: topic.id for name, topic in topics.items()}
            self._failure = None
            self._missing = 0
            self._away_since_s = None

    def check(self) -> None:
        """Raise what was found since `begin`.

        Raises:
            NoSuchTopic: A topic was deleted.
            RecreatedTopic: A topic was deleted, and another has its name.
            BrokerUnreachable: The broker is away for longer than the patience.
            BrokerError: Another reason for which it cannot be asked.
        """
        if self._failure is not None:
            raise self._failure

    def look(self) -> None:
        """Ask for the ids now.

        Raises:
            NoSuchTopic: A topic was deleted.
            RecreatedTopic: A topic was deleted, and another has its name.
            BrokerUnreachable: The broker does not answer for now.
        """
        with self._lock:
            before = dict(self._ids)
        _compare(before, self._asker.topics(before))

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(timeout=10 * PERIOD_S)

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_S):
            with self._lock:
                before = self._ids
            if not before:
                continue
            failure: BaseException | None = None
            asked_s = time.monotonic()
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 check raises it
                failure = error
            with self._lock:
                if before is self._ids and not self._closed.is_set():
                    self._note(failure, asked_s)

    def _note(self, failure: BaseException | None, asked_s: float) -> None:
        if failure is None:
            self._away_since_s = None
            self._missing = 0
            return
        if isinstance(failure, NoSuchTopic):
            self._missing += 1
            if self._missing < _SURE:
                return
        elif isinstance(failure, BrokerUnreachable):
            if self._away_since_s is None:
                self._away_since_s = asked_s
            if time.monotonic() - self._away_since_s < self._patience_s:
                return
            try:
                self._why_away()
            except BrokerError as reason:
                failure = type(reason)(f"{reason} (for {self._patience_s:g} s)")
        self._failure = failure


def _compare(before: Mapping[str, str], now: Mapping[str, Topic]) -> None:
    for name, identity in before.items():
        if now[name].id != identity:
            raise RecreatedTopic(
                f"the topic {name!r} was deleted and made again: its positions mean other messages "
                f"now (its id was {identity}, it is {now[name].id}); start over from its beginning"
            )
