"""Finding what the topics of a stream have lost, and accepting exactly that.

The promises:

* A stream goes on where its log ends. If a topic does not hold that position, or is another topic,
  the stream does not begin: the error says of each partition what is lost, and prints the option
  that accepts it (``--accept-lost``).
* An option accepts one loss as it was printed, or all that were printed together (``all-CODE``).
  If a topic has lost more meanwhile, that is printed, and nothing is accepted. Either all that is
  lost is accepted, or nothing.
* An option for what was accepted before changes nothing, so a command can be repeated. One for
  what is not lost is an error.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.features.contract import write_instant
from tidemill.features.errors import InputError, PositionOutOfRange, RecreatedTopic, StateMismatch
from tidemill.pipelines.ingest.topics import TopicExtent
from tidemill.pipelines.io.live.lost import (
    INCARNATION,
    AcceptedLoss,
    Loss,
    Why,
    base_of,
    offset_of,
)

OPTION: Final = "--accept-lost"
_RANGE: Final = re.compile(r"(?P<source>.+)/(?P<partition>\d+)@(?P<first>\d+)-(?P<last>\d+)")
_ALL: Final = re.compile(r"all-[0-9a-f]{12}")
_TOPIC: Final = re.compile(r"(?P<source>[^/@]+)@(?P<id>[^@/]+)")


@dataclass(frozen=True)
class ReadTo:
    """Where a log has read the topics to.

    Attributes:
        positions: Source to the position of the next message of each partition of its topic
            (`pipelines.io.live.lost`).
        topic_ids: Source to the id of the topic that has these; sources of which it is not known
            are left out.
    """

    positions: Mapping[str, Sequence[int]]
    topic_ids: Mapping[str, str]

    def with_new(self, extents: Mapping[str, TopicExtent]) -> ReadTo:
        """Return it with the partitions that topics have got since, of which nothing is read."""
        positions = {}
        for source, found in self.positions.items():
            extent = extents[source]
            is_other = self.topic_ids.get(source, extent.id) != extent.id
            new = 0 if is_other else len(extent.first) - len(found)
            positions[source] = [*found, *[0] * new]
        return ReadTo(positions, self.topic_ids)


def check_option(text: str) -> str:
    """Return an option as it is; its form is checked only.

    Raises:
        InputError: It has another form than those that are printed.
    """
    if not any(form.fullmatch(text) for form in (_RANGE, _TOPIC, _ALL)):
        raise InputError(
            f"found {text!r}, expected SOURCE/PARTITION@FIRST-LAST, SOURCE@TOPIC-ID or all-CODE, "
            "as `tidemill stream` prints it when a topic has lost messages"
        )
    return text


def find_losses(
    read: ReadTo, extents: Mapping[str, TopicExtent], options: Iterable[str] = ()
) -> list[Loss]:
    """Return what topics have lost that was not read yet.

    Args:
        read: Where the log has read them to.
        extents: What they have now.
        options: What a person accepts. Where a partition ends before the position, an option says
            at which offset reading goes on, as long as the partition has it.

    Returns:
        The losses, by source and partition; those of one partition in the order of positions.

    Raises:
        StateMismatch: A topic that was made again has other partitions.
    """
    begins = dict(found for one in options if (found := _named(one)) is not None)
    losses: list[Loss] = []
    for source, positions in sorted(read.positions.items()):
        extent, before = extents[source], read.topic_ids.get(source, "")
        is_other = before not in ("", extent.id)
        if is_other and len(extent.first) != len(positions):
            other = "begin a new root"
            if len(extent.first) > len(positions):
                other = "run `tidemill backfill`, and the stream without --resume, to read them all"
            raise StateMismatch(
                f"the topic {extent.topic!r} of {source!r} was deleted and made again, with "
                f"{len(extent.first)} partitions, and the stream reads {len(positions)}: make it "
                f"with {len(positions)} partitions, or {other}"
            )
        # One that has fewer is told when it is read.
        for partition, position in enumerate(positions[: len(extent.first)]):
            first, end = extent.first[partition], extent.ends[partition]
            anew, at = base_of(position) + INCARNATION, position
            why, stop = None, position
            if is_other:
                why, stop = Why.RECREATED, anew
            elif offset_of(position) > end:
                begin = begins.get((source, partition, offset_of(position) - 1), end)
                why, stop = Why.SHORTER, anew + min(begin, end)
            if why is not None:
                losses.append(
                    Loss(source, extent.topic, partition, why, at, stop, before, extent.id)
                )
                at = stop
            if offset_of(at) < first:
                stop = base_of(at) + first
                losses.append(
                    Loss(
                        source, extent.topic, partition, Why.DELETED, at, stop, extent.id, extent.id
                    )
                )
    return losses


def _named(option: str) -> tuple[tuple[str, int, int], int] | None:
    """Return of an option for a range: source, partition and last offset; and the first offset."""
    found = _RANGE.fullmatch(option)
    if found is None:
        return None
    return (found["source"], int(found["partition"]), int(found["last"])), int(found["first"])


def check_accepted(
    losses: Sequence[Loss],
    options: Sequence[str],
    before: Sequence[AcceptedLoss],
    command: str = "tidemill stream --resume",
) -> list[str]:
    """Check that all that is lost is accepted, and nothing else.

    Args:
        losses: What is lost.
        options: What a person accepts.
        before: What was accepted before.
        command: The command that takes the options.

    Returns:
        What to tell of options that change nothing.

    Raises:
        RecreatedTopic: A topic is another one, and that is not accepted.
        PositionOutOfRange: A topic has lost messages, and that is not accepted.
        InputError: An option names what is not lost.
    """
    together = code_of(losses)
    lost, known = {together, *(loss.option for loss in losses)}, _accepted_by_option(before)
    refused = [loss for loss in losses if loss.option not in options]
    if refused and together not in options:
        raise _refusal(losses, refused, command)
    if wrong := [one for one in dict.fromkeys(options) if one not in lost and one not in known]:
        if not losses:
            raise InputError(
                f"nothing is lost, and {OPTION} {wrong[0]} accepts a loss: remove the option"
            )
        raise InputError(f"{OPTION} {wrong[0]}: that is not lost; remove the option")
    return [
        f"{OPTION} {one} changes nothing: it was accepted at "
        f"{write_instant(known[one].accepted_us)}"
        for one in dict.fromkeys(options)
        if one not in lost
    ]


def code_of(losses: Iterable[Loss]) -> str:
    """Return the option that accepts some losses together, and no others."""
    options = sorted({loss.option for loss in losses})
    return f"all-{hashlib.sha256(' '.join(options).encode()).hexdigest()[:12]}"


def _accepted_by_option(before: Sequence[AcceptedLoss]) -> dict[str, AcceptedLoss]:
    """Return what was accepted, by the options that could accept it."""
    found = {one.loss.option: one for one in before}
    for poll in {one.poll for one in before}:
        of_poll = [one for one in before if one.poll == poll]
        found[code_of(one.loss for one in of_poll)] = of_poll[0]
    return found


def _refusal(
    losses: Sequence[Loss], refused: Sequence[Loss], command: str
) -> RecreatedTopic | PositionOutOfRange:
    """Return the error that says what is lost, and how to accept it."""
    options = {loss.option for loss in losses}
    option = code_of(losses) if len(options) > 1 else losses[0].option
    others = f", and {len(refused) - 1} more losses" if len(refused) > 1 else ""
    text = (
        f"{refused[0].describe()}{others}; nothing is skipped by itself: restore the topic, or go "
        f"on without: {command} {OPTION} {option}"
    )
    if any(loss.why is Why.RECREATED for loss in refused):
        return RecreatedTopic(text)
    one = refused[0]
    where = one.topic, one.partition, offset_of(one.start)
    return PositionOutOfRange(text, *where, offset_of(one.stop), -1)


def who_accepts() -> str:
    """Return the user, machine and process that accept a loss, as a text."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a container may run without a name for its user
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"
