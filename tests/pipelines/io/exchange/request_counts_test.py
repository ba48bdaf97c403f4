"""How many requests an exchange takes: at most so many a second, and so many an object.

The bounds are upper ones, and of the time that has passed, so a slow machine keeps them, too.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pyarrow as pa

from tests.support.met import Keep, met, wait
from tests.support.s3_server import S3Server
from tidemill.pipelines.io.cuts import Cut
from tidemill.pipelines.io.poll import Poll, PollPart

JOURNALS = 2
BEGINS = 12
"""Requests of each kind that begin or end something."""


class Paced:
    """A poll every 50 ms."""

    def __init__(self, until: int) -> None:
        self._until, self._began_s = until, time.monotonic()

    def next(self, at: Cut) -> tuple[Poll, list[pa.RecordBatch]] | None:
        number = at.number + 1
        if number > self._until or time.monotonic() < self._began_s + 0.05 * number:
            return None
        return Poll(number, 0, (PollPart("source", 0, at.number, number, number, None),)), []

    def last(self, at: Cut) -> Poll | None:
        return None


def test_an_idle_exchange_lists_once_a_second_and_asks_ten_times(
    s3: S3Server, tmp_path: Path
) -> None:
    with met(s3, tmp_path / "root", Keep()) as (program, _):
        time.sleep(2)
        before, began_s = s3.requests(), time.monotonic()
        time.sleep(6)
        program.check()
        found, took_s = s3.requests() - before, time.monotonic() - began_s
    assert 0 < found["LIST"] <= took_s + BEGINS
    assert found["PUT"] <= JOURNALS * (took_s / 2 + 1)
    assert found["GET"] <= found["PUT"] + JOURNALS
    # And whether the bucket is there, every two seconds at each end.
    questions = found["HEAD"] - found["GET"]
    assert 0 < questions <= JOURNALS * (took_s / 0.1 + took_s / 2 + BEGINS)


def test_an_exchange_that_works_takes_an_object_a_poll_each_way_and_no_more_lists(
    s3: S3Server, tmp_path: Path
) -> None:
    polls, keep = 100, Keep()
    with met(s3, tmp_path / "root", keep) as (program, worker):
        before, began_s = s3.requests(), time.monotonic()
        program.send(Paced(polls), Cut(0, (0,)))
        at = Cut(0, (0,))
        while at.number < polls:
            sent = worker.polls().next(at)
            if sent is None:
                worker.polls().check()
                time.sleep(0.002)
                continue
            at = Cut(sent[0].number, (sent[0].number,))
            for step in range(3):
                element = b"%d-%d" % (at.number, step)
                worker.hand_over("keep", [element], is_awaited=step == 2)
        wait(lambda: len(keep.kept) == 1 + 3 * polls, program)
        found, took_s = s3.requests() - before, time.monotonic() - began_s
    assert keep.kept[1:] == [b"%d-%d" % (n, step) for n in range(1, 101) for step in range(3)]
    assert found["LIST"] <= took_s + BEGINS
    beats = JOURNALS * (took_s / 2 + 1)
    assert found["PUT"] <= JOURNALS * polls + beats
    # Folders of what was read are removed meanwhile, and the questions of that are counted, too.
    assert found["GET"] <= found["PUT"] + JOURNALS
    assert found["HEAD"] - found["GET"] <= JOURNALS * (took_s / 0.01 + BEGINS) + took_s
    assert found["DELETE"] <= BEGINS
    assert not Counter(found).keys() - {"LIST", "HEAD", "GET", "PUT", "DELETE"}
