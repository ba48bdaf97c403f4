"""Checking that a live log passes over messages only where a person has accepted that.

Each position in a topic follows from the one before it. It rises; it changes its incarnation
(`pipelines.io.live.lost`), or passes over what was lost, only in a poll whose cut says so, and the
records of that poll lead from the position before it to the one after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tidemill.features.errors import DamagedFile, StateError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.lost import INCARNATION, AcceptedLoss, mark_of
from tidemill.pipelines.io.live.set_aside import losses_of
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.findings import Findings, Mismatch


class LossCheck:
    """Checks the positions of a live log, from its beginning and then what was added.

    Args:
        live: The live log.

    Attributes:
        losses: What was lost and accepted, as of the last check.
    """

    def __init__(self, live: LiveLog) -> None:
        self.losses: list[AcceptedLoss] = []
        self._live, self._number = live, 0
        self._at: dict[tuple[str, int], int] = {}

    def check(self, findings: Findings) -> None:
        """Check the polls that were sealed since the last check.

        Args:
            findings: Takes what is wrong.

        Raises:
            DamagedFile: A file is damaged.
            StateError: A record is damaged.
        """
        live, after = self._live, self._number
        until = live.sealed().number
        self.losses = losses_of(live)
        records: dict[tuple[int, str, int], list[AcceptedLoss]] = {}
        for one in self.losses:
            if after < one.poll <= until:
                key = one.poll, one.loss.source, one.loss.partition
                records.setdefault(key, []).append(one)
        topics = live.topics()
        for cuts in live.offset_cuts(after, until):
            for place, offsets in cuts.offsets.items():
                if place[0] not in topics:
                    continue  # a source that has no topic any more
                source, partition = place
                begun = topics[source].offsets
                # One that the topic got later is read from its beginning.
                begin = self._at.get(place, begun[partition] if partition < len(begun) else 0)
                before = _positions_before(begin, offsets)
                self._check_steps(place, cuts.number, before, offsets, cuts.marks[place], findings)
                for row in np.flatnonzero(cuts.marks[place]).tolist():
                    number = int(cuts.number[row])
                    chain = records.pop((number, *place), [])
                    why = _fault(
                        chain,
                        int(before[row]),
                        int(offsets[row]),
                        int(cuts.marks[place][row]),
                        int(cuts.received_us[row]),
                    )
                    if why:
                        _add(findings, place, number, why)
                self._at[place] = int(offsets[-1]) if offsets[-1] >= 0 else int(before[-1])
        for number, source, partition in records:
            why = "a record of lost messages that the poll does not have"
            _add(findings, (source, partition), number, why)
        self._number = until

    @staticmethod
    def _check_steps(
        place: tuple[str, int],
        numbers: Any,
        before: Any,
        offsets: Any,
        marks: Any,
        findings: Findings,
    ) -> None:
        known = offsets >= 0
        back = known & (offsets < before)
        anew = known & ~back & (offsets // INCARNATION != before // INCARNATION) & (marks == 0)
        for wrong, why in (
            (back, "the position steps back"),
            (anew, "offsets begin anew, and no record says that it was accepted"),
        ):
            for row in np.flatnonzero(wrong).tolist():
                _add(findings, place, int(numbers[row]), why)


def _positions_before(begin: int, offsets: Any) -> Any:
    """Return the position before each poll, of which the first goes on from ``begin``."""
    before = np.concatenate([[begin], offsets[:-1]])
    before[before < 0] = begin  # before the topic had the partition
    return before


def _fault(chain: list[AcceptedLoss], before: int, after: int, mark: int, received_us: int) -> str:
    """Return what is wrong with the records of a partition in a poll; empty if nothing is."""
    if not chain:
        return "positions pass over lost messages, and the record that says so is missing"
    if not all(one.is_whole for one in chain) or mark_of(one.digest for one in chain) != mark:
        return "the record of lost messages was changed"
    for one in chain:
        if one.loss.start != before or one.accepted_us != received_us:
            return "the record of lost messages does not begin where the log was"
        before = one.loss.stop
    return "" if before == after else "the record of lost messages does not lead to the position"


def _add(findings: Findings, place: tuple[str, int], number: int, why: str) -> None:
    findings.add(Mismatch("log", f"{place[0]}/{place[1]}, poll {number}", cause=why))


def compare_lost(
    config: Configuration, progress: Progress, findings: Findings
) -> Mapping[str, Any]:
    """Check the positions of the live log of the current generation, and say what was lost.

    Args:
        config: The configuration.
        progress: Where it is said.
        findings: Takes what is wrong.

    Returns:
        ``lost``, what was lost and accepted; ``lost_messages``, how many messages that is at most,
        without those of which nobody knows how many they are; and ``lost_mismatches``.
    """
    live, mine = LiveLog(config.current.folder / LIVE, config.project), Findings()
    losses: list[AcceptedLoss] = []
    if live.exists:
        check = LossCheck(live)
        try:
            check.check(mine)
        except (DamagedFile, StateError) as error:
            mine.add(Mismatch("log", str(live.folder), cause=str(error)))
        losses = check.losses
    for one in losses:
        progress.say(f"{one.describe()}: no value counts them")
    findings.merge(mine)
    return {
        "lost": [one.as_figures() for one in losses],
        "lost_messages": sum(one.loss.messages or 0 for one in losses),
        "lost_mismatches": mine.count,
    }
