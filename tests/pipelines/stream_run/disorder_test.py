"""Events in disorder, through a broker: what docs/live-streams.md says must come of each kind.

Two streams, exact and eager, read the same topics. Every value is compared with the oracle's, over
the events that the script says count.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.disordered_project import (
    DisorderedProject,
    Script,
    all_streaming,
)
from tests.support.kafka_broker import TestBroker
from tidemill.features.contract import MINUTE
from tidemill.features.oracle.values import Oracle
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.run.summary import read_summary

HOUR_S = 3_600.0
LATER = 900.0  # a quarter of an hour: every event from before has left the windows of ten minutes
SILENT, CLOCKS = 2, 3
"""The partition that goes silent, and the one that producers with wrong clocks share."""


def first_events(script: Script) -> None:
    chance = random.Random(7)
    for n in range(400):  # half of all events
        script.pay("hot", n / 40, amount=n, partition=1)
    # Within the bound: none is two seconds below a time that came before it.
    times = [n * 0.5 for n in range(24)]
    for at in sorted(times, key=lambda at: at + chance.uniform(0, 1.999)):
        script.pay("shuffled", at, amount=round(at * 2))
    # Delivered twice: at once, with another timestamp, and through another partition.
    script.pay("twice", 11.0, 5, name="t")
    script.pay("twice", 11.0, 5, name="t")
    script.pay("twice", 11.0, 5, name="t", stamped=11.9)
    script.pay("twice", 11.0, 5, 1, name="t")
    script.pay("two of one id", 11.0, 5, name="c")
    script.pay("two of one id", 11.0, 6, name="c")
    # The highest time in the partition is 12.
    script.pay("beyond", 12.0, 1)
    script.pay("beyond", 8.0, 2)
    script.pay("beyond", 7.0, 4)
    script.pay("beyond", 6.999, 8, becomes="too_late")
    script.pay("late", 4.0, 1, 1, becomes="too_late")  # the hot key has moved the partition on
    script.pay("late", 9.0, 1, 1)
    script.pay("silent", 1.0, 1, SILENT)
    for seconds, amount in ((5.0, 1), (6.0, 2)):
        script.pay("ahead", seconds, amount, CLOCKS)
        wrong = seconds + HOUR_S
        script.pay("ahead", wrong, 100, CLOCKS, becomes="ahead", stamped=wrong)
        script.pay("ahead", wrong, 101, CLOCKS, becomes="ahead", stamped=seconds)
        script.pay("behind", seconds, amount, CLOCKS)
        script.pay("behind", seconds - HOUR_S, 100, CLOCKS, becomes="too_late")
    # Ahead by less than is allowed: it counts, and is the highest time of its partition now.
    script.pay("near", 14.9, 1, CLOCKS, stamped=5.0)
    script.pay("near", 9.0, 2, CLOCKS, becomes="too_late")
    script.beat(20, 0, 1, CLOCKS)


CARDS = (
    "shuffled", "twice", "two of one id", "beyond", "hot", "late", "silent", "ahead", "behind",
    "near",
)  # fmt: skip


def test_disorder_has_the_outcome_that_is_written_down(tmp_path: Path, broker: TestBroker) -> None:
    begin_us = (time.time_ns() // 1_000 // MINUTE - 18) * MINUTE
    script = Script(broker, begin_us)
    exact = DisorderedProject(tmp_path / "exact", broker, mode="exact")
    eager = DisorderedProject(tmp_path / "eager", broker, mode="eager")
    both = [exact, eager]

    def of_both(action: Any) -> None:
        script.flush()
        for project in both:
            action(project)

    def asked_of_both(
        cards: Mapping[str, str], seconds: float, *, beats: float, ahead: str | None = None
    ) -> None:
        """Ask about cards, let time go on, and wait for the answers.

        With them comes a request of a producer whose clock is ahead; its answer is not waited for.
        """
        for name, card in cards.items():
            script.ask(name, card, seconds)
        if ahead is not None:
            script.ask(ahead, "hot", seconds + 7.5, stamped=seconds)
        of_both(DisorderedProject.wait_until_read)
        script.beat(beats, 0, 1, CLOCKS)
        of_both(lambda one: one.wait_until_answered(*cards))

    for project in both:
        project.prepare(script)
    with all_streaming(both) as processes:
        first_events(script)
        of_both(DisorderedProject.wait_until_read)
        asked_of_both({f"1 {card}": card for card in CARDS}, 18.5, beats=22)

        # All frontiers are at 19 now: 22 less a second to wait and two of disorder.
        script.pay("late", 17.5, 2)
        script.pay("late", 17.5, 2)
        script.beat(30, 0, 1, CLOCKS)
        of_both(DisorderedProject.wait_until_read)
        asked_of_both({"2 late": "late"}, 28.5, beats=32)

        for n in range(3_000):  # in a second, what came in ten before
            script.pay("burst", LATER + n / 3_000, n, n % 2)
        script.beat(LATER + 2, 0, 1, CLOCKS)
        of_both(DisorderedProject.wait_until_read)
        asked_of_both({"3 hot": "hot"}, LATER + 1, beats=LATER + 5)

        # The silent partition comes back, with an old event that it accepts, and a new one.
        script.pay("silent", LATER - 60, 10, SILENT)
        script.pay("silent", LATER + 6, 20, SILENT)
        script.beat(LATER + 20, 0, 1, SILENT, CLOCKS)
        of_both(DisorderedProject.wait_until_read)
        cards = ("silent", "burst", "shuffled")
        asked = {f"4 {card}": card for card in cards}
        asked_of_both(asked, LATER + 18.5, beats=LATER + 22, ahead="5 ahead")
        assert "5 ahead" not in {row["request_id"] for row in exact.predictions()}
        script.beat(LATER + 30, 0, 1, SILENT, CLOCKS)
        of_both(DisorderedProject.wait_until_read)
        of_both(lambda one: one.wait_until_answered("5 ahead"))
        for project, process in zip(both, processes, strict=True):
            project.drain(process)
    for project in both:
        check(project, script)
    figures = read_summary(exact.folder / "run")["stream"]
    assert figures["late"] == 2  # of "late" and of "silent"
    assert figures["late_after_quiet"] == {"asked": 0, "paid": 1}
    assert (figures["duplicates"], figures["conflicts"]) == ({"paid": 4}, {"paid": 1})
    assert exact.verify() == 3 * len(script.requests)


def check(project: DisorderedProject, script: Script) -> None:
    """Compare rejections with the script, and values with the oracle."""
    assert Counter(project.rejected()) == Counter(script.refused)
    (view,) = load(project.folder / "tidemill.yaml").project.views
    answers = {row["request_id"]: row for row in project.predictions()}
    assert answers.keys() == script.requests.keys()
    expected: dict[str, tuple[Any, ...]] = {}
    for name, row in answers.items():
        card, at_us, known = script.requests[name]
        as_of = row["as_of__by_card"]
        if project.mode == "exact":
            assert as_of == at_us
        assert as_of >= at_us
        values = Oracle(view, script.accepted[card][:known]).values(card, as_of)
        expected[name] = tuple(values.values())
        found = tuple(row[f"by_card__{feature}"] for feature in ("n", "total", "newest"))
        assert found == expected[name], (project.mode, name)
    # And what the table says, in numbers.
    assert expected["1 shuffled"] == (24, sum(range(24)), 23)
    assert expected["1 twice"] == (1, 5, 5)
    assert expected["1 two of one id"][:2] == (2, 11)
    assert expected["1 beyond"] == (3, 7, 1)
    assert expected["1 hot"] == (400, sum(range(400)), 399)
    assert expected["1 late"] == (1, 1, 1)
    assert expected["2 late"] == (2, 3, 2)
    assert expected["1 ahead"] == expected["1 behind"] == (2, 3, 2)
    assert expected["1 near"] == (1, 1, 1)
    assert expected["1 silent"] == (1, 1, 1)
    assert expected["4 silent"] == (2, 30, 20)
    assert expected["4 burst"] == (3_000, sum(range(3_000)), 2_999)
    assert expected["3 hot"][0] == expected["4 shuffled"][0] == 0  # a quiet entity
    assert expected["4 shuffled"][2] is None
