"""Export rejected records from their topic, where the files of the stream are not at hand.

The lines are those of an export from files (`pipelines.ingest.export_rejected`), and are given back
in the same way. What the root knows of a record, if it is at hand, counts: a record that was mended
is left out, and one that was mended and rejected again has the new reason.

A record whose bytes the topic did not take is named and counted; it is never exported as empty.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from tidemill.features.errors import ConfigurationError, InputError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.sink_section import REJECTED, KafkaSink
from tidemill.pipelines.delivery.dead_letters import (
    DeadLetter,
    DeadLetters,
    Forgotten,
    read_dead_letters,
)
from tidemill.pipelines.ingest.export_rejected import live_line, what_to_do, write_lines
from tidemill.pipelines.ingest.live_records import (
    LiveRecord,
    LiveRecords,
    read_live_records,
)
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.holder import root_id
from tidemill.pipelines.run.progress import Progress

_NAMED: Final = 20
"""So many records without bytes are named; all are counted."""


def export_dead_letters(
    config: Configuration,
    progress: Progress,
    *,
    root: str | None = None,
    forgotten: Forgotten = lambda *_: False,
) -> dict[str, Any]:
    """Write the rejected records that the topic of the section ``rejected`` has, by source.

    Args:
        config: The configuration.
        progress: Shows progress, and what to do next.
        root: The id of the root whose streams have written them; None for the configuration's.
        forgotten: Tells which records were forgotten; they are left out.

    Returns:
        Counts by source: ``exported``; ``without_payload``, those whose bytes the topic did not
        take; ``mended_before``; and the ``file``, if a record was exported.

    Raises:
        ConfigurationError: No topic is named.
        InputError: The root has no id, so no stream of it has written to a topic.
        BrokerError: The topic cannot be read.
        StateError: The live log of the root is damaged.
        DamagedFile: A file of it, or of mended records, is damaged.
    """
    sink = config.sinks.get(REJECTED)
    if sink is None:
        raise ConfigurationError(
            f"{config.path}: --from-topic reads the topic of rejected records, and none is named; "
            f"add {REJECTED}: {{kafka: {{bootstrap: ..., topic: ...}}}}"
        )
    at_hand = root_id(config.root) if (config.root / paths.ROOT_ID).exists() else None
    letters = DeadLetters(root or at_hand or "", forgotten)
    read_dead_letters(sink, letters, progress)
    if not letters.root:
        raise InputError(_whose(config, sink, letters))
    live = read_live_records(config) if letters.root == at_hand else LiveRecords()
    figures = _write(config, progress, letters, live)
    _say_others(config, progress, letters)
    unknown = letters.letters.keys() - live.rejected.keys() - live.mended
    if letters.root == at_hand and unknown:
        progress.say(
            f"{len(unknown):,} of the records are not in the live log of {config.root}: what is "
            "mended of them can be given back only to a copy of the root that has them."
        )
    if not any(one["exported"] for one in figures.values()):
        progress.say(f"The topic {sink.topic!r} has nothing to mend of the root {letters.root}.")
    else:
        where = "" if letters.root == at_hand else f", on the root {letters.root}"
        progress.say(f"{what_to_do(config.root)}{where}. The stream takes them.")
    return figures


def _whose(config: Configuration, sink: KafkaSink, letters: DeadLetters) -> str:
    found = ", ".join(f"{name} ({count:,} messages)" for name, count in letters.others.items())
    return (
        f"{config.root} has no id yet: no stream of it has written to a topic. The topic "
        f"{sink.topic!r} has rejected records of {f'the roots {found}' if found else 'no root'}; "
        "name the root with --root, or its id with --root-id"
    )


def _write(
    config: Configuration,
    progress: Progress,
    letters: DeadLetters,
    live: LiveRecords,
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    by_source: dict[str, list[tuple[str, DeadLetter]]] = {}
    for id, letter in letters.letters.items():
        by_source.setdefault(letter.record["stream"], []).append((id, letter))
    for source in sorted(by_source.keys() & config.sources.keys()):
        lines, counts = list[str](), Counter[str]()
        for id, letter in sorted(by_source[source], key=lambda one: one[1].order):
            if id in live.mended:
                counts["mended_before"] += 1
            elif letter.left_out is not None:
                counts["without_payload"] += 1
                if counts["without_payload"] <= _NAMED:
                    progress.say(_without_bytes(id, letter))
            else:
                known = live.rejected.get(id) or LiveRecord(letter.record, None, -1, ())
                lines.append(live_line(id, known))
        if counts["without_payload"] > _NAMED:
            more = counts["without_payload"] - _NAMED
            progress.say(f"{more:,} more records of {source!r} are without their bytes")
        figures[source] = {
            "exported": len(lines),
            "without_payload": counts["without_payload"],
            "mended_before": counts["mended_before"],
        }
        if lines:
            figures[source]["file"] = str(write_lines(config.root, source, lines, progress))
    return figures


def _without_bytes(id: str, letter: DeadLetter) -> str:
    of = letter.record
    return (
        f"record {id} of {of['stream']!r} ({of['origin']}, {of['reason']}): the topic did not take "
        f"its {letter.left_out:,} bytes, so it is not exported; export it from the files, with "
        "tidemill replay-rejected on its root, and raise the topic's max.message.bytes"
    )


def _say_others(config: Configuration, progress: Progress, letters: DeadLetters) -> None:
    """Say what else is in the topic."""
    if unknown := {one.record["stream"] for one in letters.letters.values()} - {*config.sources}:
        progress.say(
            f"Records of {', '.join(sorted(unknown))} are left out: {config.path} has no such "
            "source."
        )
    if others := letters.others.total():
        progress.say(f"{others:,} messages are of other roots: {', '.join(sorted(letters.others))}")
    if letters.unusable:
        progress.say(f"{letters.unusable:,} messages are no rejected records of a stream")
    if letters.damaged:
        progress.say(
            f"{letters.damaged:,} messages name the root, and their bytes are not those of their "
            "record: they are left out"
        )
