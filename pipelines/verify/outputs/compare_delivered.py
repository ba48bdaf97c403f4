"""Comparing the topics that a stream has written to with its files.

The files are compared with what the polls of the stream give (`compare_outputs`); so a message that
equals its record in the files is proven with it.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.delivery.compare import compare
from tidemill.pipelines.delivery.record import DeliveryRecord
from tidemill.pipelines.forget.places import ForgottenPlaces
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.findings import Findings, Mismatch

FIGURES: Final = (
    "delivered_compared",
    "delivered_not_comparable",
    "delivered_scored_otherwise",
    "delivered_shortened",
)
_CAUSES: Final = {
    "lost": "the topic has no message of the record, and has removed none since the stream began",
    "doubled": "the topic has a further message of the record",
    "changed": "the message says something else than the files",
    "extra": "the topic has a message of a record that the files do not have",
}


def compare_delivered(
    config: Configuration, progress: Progress, findings: Findings
) -> dict[str, int]:
    """Compare the topics that the configuration names with the files of a stream.

    Args:
        config: The configuration, with the folders of the stream.
        progress: Where progress is shown.
        findings: Takes the mismatches.

    Returns:
        How many records were compared; how many could not be, because the topic's retention may
        have removed their messages; how many were equal but for scores that another bundle or
        device has computed; and how many were too large for the topic, and were shortened.

    Raises:
        BrokerError: A topic cannot be read.
    """
    folder, found = config.current.stream_folder, Counter(dict.fromkeys(FIGURES, 0))
    record = DeliveryRecord.read(folder)
    current, request = config.current, config.project.request.name
    forgotten = ForgottenPlaces.read(config.root, current.generation, request)
    for name, sink in config.sinks.items():
        delivered = None if record is None else record.sinks.get(name)
        if record is None or delivered is None:
            continue
        if delivered.topic != sink.topic:
            progress.say(
                f"{name} of the stream in {folder} went to the topic {delivered.topic!r}, which "
                "the configuration does not name any more: they are not compared"
            )
            continue
        with progress.stage(f"compare the topic {sink.topic}", None, "messages") as stage:
            compared = compare(
                name, sink, delivered, folder, record.stream, forgotten=forgotten.has
            )
            stage.advance(compared.compared)
        found["delivered_compared"] += compared.compared
        found["delivered_not_comparable"] += compared.not_comparable
        found["delivered_scored_otherwise"] += compared.scored_otherwise
        found["delivered_shortened"] += compared.shortened
        if compared.not_comparable:
            progress.say(
                f"{compared.not_comparable:,} of {name} could not be compared: the retention of "
                f"the topic {sink.topic!r} may have removed their messages"
            )
        if compared.shortened:
            progress.say(
                f"{compared.shortened:,} of {name} lack, in the topic {sink.topic!r}, what made "
                "them larger than it accepts; the files have it"
            )
        for difference in compared.differences:
            findings.add(
                Mismatch(
                    f"delivered {difference.what}", difference.shown, name, difference.field,
                    seen=difference.seen, expected=difference.expected,
                    cause=_CAUSES[difference.what],
                )
            )  # fmt: skip
        listed = Counter(difference.what for difference in compared.differences)
        for what in _CAUSES:
            if further := getattr(compared, what) - listed[what]:
                findings.add(
                    Mismatch(f"delivered {what}", f"{further:,} more", name, cause=_CAUSES[what]),
                    further,
                )
    return dict(found)
