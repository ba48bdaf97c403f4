"""Each thread has its own connections, and a forked process none of its parent's."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import weakref

from tidemill.serving.online.per_thread import PerThread


class _Opened:
    """A connection that can be watched."""


def test_what_a_thread_puts_it_gets_and_pops() -> None:
    opened = PerThread[str, _Opened]()
    one = _Opened()
    opened.put("a", one)
    assert opened.get("a") is one
    assert opened.get("b") is None
    assert opened.pop("a") is one
    assert opened.pop("a") is None
    assert opened.get("a") is None


def test_another_thread_has_nothing() -> None:
    opened = PerThread[str, _Opened]()
    opened.put("a", _Opened())
    found: list[_Opened | None] = [_Opened()]
    thread = threading.Thread(target=lambda: found.append(opened.get("a")))
    thread.start()
    thread.join()
    assert found[1:] == [None]


def _in_a_fork(opened: PerThread[str, _Opened]) -> None:
    parents = opened._opened["a"][1]
    kept = weakref.ref(parents)
    del parents
    assert opened.get("a") is None
    opened.put("a", _Opened())
    assert opened.pop("a") is not kept()
    assert opened.pop("a") is None
    gc.collect()
    assert kept() is not None  # never closed by being collected


def _fork() -> None:
    opened = PerThread[str, _Opened]()
    one = _Opened()
    opened.put("a", one)
    child = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(opened,))
    del one
    child.start()
    child.join()
    assert child.exitcode == 0
    assert opened.get("a") is not None


def test_a_forked_process_has_nothing_and_keeps_its_parents_open() -> None:
    # Fork from a new process: this one may have threads of TensorFlow, whose locks do not survive.
    process = multiprocessing.get_context("spawn").Process(target=_fork)
    process.start()
    process.join()
    assert process.exitcode == 0
