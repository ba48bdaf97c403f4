"""Commands on one root in any order, and what each of them is to do there.

`OrdersShop` runs commands on a shop whose sources grow, and knows, by a few rules, which of them
are refused where. A command that is not refused must succeed, whatever came before.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest

from tests.support.grown_shop import BEFORE, GROWN, GrownShop, by_shop, shop_of
from tests.support.memory_topics import NAMES
from tidemill import Project
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.commands import apply_plan
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.reader_clock import reader_clock
from tidemill.pipelines.recovery.republish import republish
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.upgrade.upgrade import upgrade
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.registry.registration import plan_project

COMMANDS: Final = (
    "backfill", "publish", "later", "later_publish", "republish", "forget", "upgrade", "stream",
    "resume", "correct", "correct_publish", "apply",
)  # fmt: skip
"""What may be done, in the words of `OrdersShop`."""


def version(number: int) -> Project:
    """Return a version of the project: each differs from the one before by views or columns.

    The first one has the columns of before, all others have what its payments have got since. From
    one to the next a view comes or goes; every second time the hop of another one changes.
    """
    if not number:
        return BEFORE
    project = shop_of(GROWN, with_tips=bool(number % 2))
    hop = "2m" if number // 2 % 2 else "1m"
    views = [replace(by_shop(GROWN), hop=hop) if v.name == "by_shop" else v for v in project.views]
    return replace(project, views=views)


@dataclass
class OrdersShop(GrownShop):
    """A shop on whose root commands are run one after the other.

    Attributes:
        number: The version of the project.
        built: The version that the current build was made by.
        streamed: The version that the stream of the generation goes on with; None without one.
        upgraded: Whether that stream was upgraded.
        may_resume: Whether the end of the evaluation is the one that the stream began at, or it was
            upgraded since.
        forgotten: Whether an entity was forgotten since the last build.
        done: The commands so far.
        changes: Further settings of the configuration.
    """

    number: int = 0
    built: int = 0
    streamed: int | None = None
    upgraded: bool = False
    may_resume: bool = True
    forgotten: bool = False
    done: list[str] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, **changes: Any) -> Any:
        """Return the configuration of the version."""
        return super().config(**{**self.changes, **changes})

    def begin(self, patch: pytest.MonkeyPatch) -> None:
        """Make a first build and a first stream, which has stopped."""
        self.patch = patch
        self.at_us = self.until_us
        self.cards = itertools.cycle(f"c-{number}" for number in range(5))
        backfill(self.config(), QuietProgress(), publish=True)
        self._send()
        self.stream(patch)
        self.streamed = self.number

    def run(self, command: str) -> None:
        """Run a command, and check that it does what it is to do."""
        self.done.append(command)
        getattr(self, f"_{command}")()

    def prove(self) -> dict[str, Any]:
        """Verify everything."""
        found = verify(self.config(), QuietProgress(), sample=5)
        assert found["mismatches"] == 0, (self.done, found["first_mismatches"])
        return found

    def end(self) -> None:
        """Let the stream go on, or begin it, and prove what it has answered."""
        if self.streamed is not None and self.may_resume:
            self.run("resume")
        else:
            self.run("publish")
            self.run("stream")
        self.prove()

    def _send(self) -> None:
        self.at_us += 10 * SECOND
        self.send(self.at_us, steps=6, every_us=10 * SECOND)
        self.at_us += MINUTE

    def _refused(self, command: Callable[[], object]) -> None:
        with pytest.raises(StateMismatch):
            command()

    def _expect(self, command: Callable[[], object], *, is_refused: bool) -> bool:
        if is_refused:
            self._refused(command)
        else:
            command()
        return not is_refused

    def _backfill(self, *, publish: bool = False, is_corrected: bool = False) -> None:
        before = self.current.generation
        backfill(self.config(), QuietProgress(), publish=publish)
        self.built = self.number
        if self.current.generation != before:
            # The files still have what was forgotten, and a backfill reads it again.
            assert is_corrected or self.forgotten, self.done
            self.streamed, self.upgraded, self.forgotten = None, False, False
        else:
            assert not is_corrected

    def _publish(self) -> None:
        self._backfill(publish=True)

    def _later(self, *, publish: bool = False) -> None:
        """Move the end of the evaluation to a row that a stream has read."""
        before = self.until_us
        self.until_us = max(before, self.read_until())
        if self.until_us != before and not self.upgraded:
            self.may_resume = False
        self._backfill(publish=publish)

    def _later_publish(self) -> None:
        self._later(publish=True)

    def _republish(self) -> None:
        of = self.built if self.streamed is None else self.streamed
        self._expect(
            lambda: republish(self.config(), QuietProgress()), is_refused=of != self.number
        )

    def _forget(self) -> None:
        key = next(self.cards)
        self.forgotten |= self._expect(
            lambda: forget(self.config(), "card", key, QuietProgress()),
            is_refused=self.built != self.number,
        )

    def _upgrade(self) -> None:
        self.number += 1
        self.project = version(self.number)
        if self._expect(
            lambda: upgrade(self.config(), QuietProgress()), is_refused=self.streamed is None
        ):
            self.streamed, self.upgraded, self.may_resume = self.number, True, True
            self.senders = (1, 2)
        else:
            self.number -= 1
            self.project = version(self.number)

    def _stream(self) -> None:
        self._send()
        if self._expect(lambda: self.stream(self.patch), is_refused=self.built != self.number):
            self.streamed, self.upgraded, self.may_resume = self.number, False, True

    def _resume(self) -> None:
        self._send()
        self._expect(
            lambda: self.stream(self.patch, resume=True),
            is_refused=self.streamed is None or not self.may_resume,
        )

    def _correct(self, *, publish: bool = False) -> None:
        """Correct a row of history: a new generation begins, without a stream."""
        rows = self.rows["payments"][0]
        rows[len(self.done) % len(rows)]["amount"] += 1
        self.write_file(self.folder / "payments.csv", "payments", rows)
        self._backfill(publish=publish, is_corrected=True)

    def _correct_publish(self) -> None:
        self._correct(publish=True)

    def _apply(self) -> None:
        config = self.config()
        preview = plan_project(config.project, config.places)
        apply_plan.carry_out(
            config.project, config.places, preview,
            promote=False, unfilled_too=False, clock=reader_clock(config),
        )  # fmt: skip


@dataclass
class ReplayedOrdersShop(OrdersShop):
    """A shop whose stream replays files; all that it will ever read is in them.

    Attributes:
        begins_us: Where the evaluation ends at first.
    """

    begins_us: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begins_us = self.until_us
        for at_us in range(self.until_us, self.until_us + 5 * HOUR, 40 * SECOND):
            for name, row in self._some(at_us):
                self.rows[name][0].append(row)
        for name in NAMES:
            self.write_file(self.folder / f"{name}.csv", name, self.rows[name][0])

    def config(self, **changes: Any) -> Any:
        """Return the configuration of the version, without topics."""
        found = super().config(**changes)
        sources = {name: replace(one, kafka=None) for name, one in found.sources.items()}
        splits = replace(found.splits, stream_until_us=self.begins_us + 5 * HOUR)
        return replace(found, sources=sources, splits=splits)

    def stream(self, monkeypatch: pytest.MonkeyPatch, *_: Any, **options: Any) -> dict[str, Any]:
        """Replay the files up to the instant that has come."""
        until_us = max(self.at_us, self.until_us)
        return stream(self.config(), QuietProgress(), until_us=until_us, **options)

    def read_until(self) -> int:
        """Return up to which instant the stream has read."""
        return self.at_us if self.streamed is not None else 0

    def _send(self) -> None:
        self.at_us += 2 * MINUTE


def walk_of_triples(names: Sequence[str], triples: int, chance: random.Random) -> list[str]:
    """Return a random walk in which so many different names follow each two before them.

    Args:
        names: The names.
        triples: How many triples of names it has; all there are at most.
        chance: Draws them.
    """
    walk, seen = [chance.choice(names), chance.choice(names)], set[tuple[str, ...]]()
    while len(seen) < min(triples, len(names) ** 3):
        fresh = [name for name in names if (*walk[-2:], name) not in seen]
        walk.append(chance.choice(fresh or list(names)))
        seen.add(tuple(walk[-3:]))
    return walk


def covering_walk(names: Sequence[str]) -> list[str]:
    """Return a walk in which each name is followed once by every one, itself too."""
    left = {name: list(names) for name in names}
    walk, stack = [], [names[0]]
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop(0))
        else:
            walk.append(stack.pop())
    return walk[::-1]
