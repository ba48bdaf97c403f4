"""Comparing how a stream began that goes on with one of another version of the project."""

from __future__ import annotations

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.stream_beginning import Beginning
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.instants import field_text


def compare_beginning(
    config: Configuration, run: StreamRun, begun: Beginning, findings: Findings
) -> None:
    """Compare the record of an upgrade with the states that are made again.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.
        begun: The states with which it began, made from the log.
        findings: Takes the mismatches.
    """
    upgrade = UpgradeRecord.of(run, config.current.stream_folder)
    if upgrade is None:
        return
    for (view, shard), operator in begun.operators.items():
        pairs = (
            ("frontiers", upgrade.frontiers[view][shard], operator.state.frontier_us),
            ("marks", upgrade.marks[view][shard], operator.mark.hex()),
        )
        for name, was, made in pairs:
            if was != made:
                _note(findings, f"{name} of shard {shard}", view, field_text(name, was),
                      field_text(name, made))  # fmt: skip
    known = {
        (one["view"], one["shard"], one["number"]): (
            one["frontier_us"],
            tuple(one["positions"]),
        )
        for one in upgrade.releases
    }
    for place in sorted({*known, *begun.releases}):
        seen, right = known.get(place), begun.releases.get(place)
        if seen != right:
            view, shard, number = place
            _note(findings, f"release {number} of shard {shard}", view, str(seen), str(right))


def _note(findings: Findings, id: str, view: str, seen: str, expected: str) -> None:
    cause = "the stream before gives another beginning: the record was changed"
    findings.add(Mismatch("upgrade.json", id, view, seen=seen, expected=expected, cause=cause))
