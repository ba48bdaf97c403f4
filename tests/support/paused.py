"""A stream that runs in a thread and pauses before one of its writes to the online store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tidemill.serving.online.redis import database as redis_database
from tidemill.serving.online.sqlite import database as sqlite_database

PLACES = {"sqlite": (sqlite_database, "transaction"), "redis": (redis_database, "exchange")}
"""By kind of store: the function through which every step of the store goes."""
PAUSE_S = 300


class Paused:
    """Runs a function in a thread, which pauses before a step of the online store.

    Attributes:
        steps: How many steps were taken, all threads together.
        error: What the function raised.
    """

    def __init__(self, function: Callable[[], object], pause_before: int) -> None:
        self.steps = 0
        self.error: BaseException | None = None
        self._function = function
        self._pause_before = pause_before
        self._is_paused, self._goes_on = threading.Event(), threading.Event()

    @contextmanager
    def paused(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Start the function, and wait until it pauses or has ended; let it go on at the end."""
        module, name = PLACES[kind]
        step = getattr(module, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.steps += 1
            # Once the function has ended, the steps are those of others.
            if self.steps == self._pause_before and not self._is_paused.is_set():
                self._is_paused.set()
                assert self._goes_on.wait(PAUSE_S)
            return step(*arguments, **named)

        with monkeypatch.context() as patch, ThreadPoolExecutor(1) as thread:
            patch.setattr(module, name, counted)
            program = thread.submit(self._function)
            program.add_done_callback(lambda _: self._is_paused.set())
            assert self._is_paused.wait(PAUSE_S)
            try:
                yield
            finally:
                self._goes_on.set()
                self.error = program.exception()

    def count(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> int:
        """Run the function to its end without a pause, and return how many steps it took."""
        self._pause_before = 0
        self._goes_on.set()
        with self.paused(kind, monkeypatch):
            pass
        assert self.error is None
        return self.steps
