"""The live rows of the generation before, which a new generation goes on with.

Corrected history begins a generation whose folder has no live rows yet. A topic may not hold its
messages any more, so the first stream of the generation takes over what the one before had read:
its sealed rows, cuts and rejected records, and the offsets at which reading goes on. Rows are
linked, not copied. The record of the topics is written last, so a start that is killed is repeated.

Rows are taken over as they were judged. If a source has other columns now, its rows cannot be, and
the stream is refused: nothing is left out silently.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog, LiveTopic, Sealed
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.log import ROWS, Log
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.serving.files.locks import lock
from tidemill.serving.generations.current import Current


def take_over(
    current: Current, project: Project, log: Log, topics: Mapping[str, LiveTopic]
) -> None:
    """Take over the live rows of the generation before, if this one has none and that one has some.

    Args:
        current: The folders of the generation.
        project: The project.
        log: The log of its build.
        topics: Its topics.

    Raises:
        Locked: A stream of the generation before runs still.
        StateMismatch: Its topics or the columns of its rows are others.
    """
    live = LiveLog(current.folder / LIVE, project)
    others = current.folder.parent.glob(f"*/{LIVE}")
    if live.exists or all(folder == live.folder for folder in others):
        return
    if (parent := BuildManifest.read(current.build_folder).parent) is None:
        return
    before = Current(current.root, parent, build=0, offline=0, stream=0)
    former = LiveLog(before.folder / LIVE, project)
    if not former.exists:
        return
    with lock(before.stream_lock, "go on with its live rows"):
        _check(former, log, Log(before.newest_build), topics)
        former.seal(before.newest_build, TIME_MAX)
        shutil.rmtree(live.folder, ignore_errors=True)
        _take_rows(former, live, topics)
        begun, sealed = former.topics(), former.sealed()
        # A topic may have got more partitions, which are read from the build's offsets.
        added = {name: topic.offsets[len(begun[name].offsets) :] for name, topic in topics.items()}
        last = former.polls.last()
        if last is not None:
            live.polls.append(_renumbered(last, log, begun, topics, added))
            live.polls.close()
        live.write_sealed(
            Sealed(
                sealed.number,
                {name: [*sealed.positions[name], *[0] * len(more)] for name, more in added.items()},
                {name: [*sealed.offsets[name], *more] for name, more in added.items()},
            )
        )
        live.begin(
            {
                name: dataclasses.replace(topic, offsets=(*begun[name].offsets, *added[name]))
                for name, topic in topics.items()
            }
        )


def _check(former: LiveLog, log: Log, log_before: Log, topics: Mapping[str, LiveTopic]) -> None:
    found = former.topics()
    for name in sorted({*found, *topics}):
        was, now = found.get(name), topics.get(name)
        if (
            was is None
            or now is None
            or was.topic != now.topic
            or len(was.offsets) > len(now.offsets)
        ):
            raise StateMismatch(
                f"the generation before has read {_said(was)} of {name!r}, and now there is "
                f"{_said(now)}: what it has read would be left out; set the topic back, or begin a "
                "new root"
            )
        columns = log.columns(name)
        if log_before.columns(name) != columns:
            raise StateMismatch(
                f"{name!r} has other columns than the rows that the generation before has read of "
                f"topic {now.topic!r}, so these cannot be taken over; set the schema back, or "
                "begin a new root whose stream reads the topic from its start (kafka.start: "
                "earliest)"
            )


def _said(topic: LiveTopic | None) -> str:
    if topic is None:
        return "no topic"
    return f"topic {topic.topic!r} of {len(topic.offsets)} partitions"


def _take_rows(former: LiveLog, live: LiveLog, topics: Mapping[str, LiveTopic]) -> None:
    """Link rows and cuts; write rejected records with the partitions that they have now."""
    begun = former.topics()
    shifts = {name: topic.first - begun[name].first for name, topic in topics.items()}
    for name, shift in shifts.items():
        target = live.folder / ROWS / name
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((former.folder / ROWS / name).glob("*.arrow")):
            partition, _, start = path.stem.partition("-")
            os.link(path, target / f"{int(partition) + shift:05d}-{start}.arrow")
    live.take_cuts(former)
    live.take_rejected(former, lambda records: _shifted(records, shifts))


def _shifted(records: pa.Table, shifts: Mapping[str, int]) -> pa.Table:
    sources = records.column("stream").to_pylist()
    numbers = records.column("partition").to_numpy() + np.array([shifts[one] for one in sources])
    place = records.schema.get_field_index("partition")
    return records.set_column(place, "partition", pa.array(numbers, pa.int64()))


def _renumbered(
    last: LoggedPoll,
    log: Log,
    before: Mapping[str, LiveTopic],
    now: Mapping[str, LiveTopic],
    added: Mapping[str, Sequence[int]],
) -> LoggedPoll:
    """Return the last poll, without rows, with the partitions that its topics have now."""
    poll = Poll.decode(bytes(last.poll))
    parts: list[PollPart] = []
    for name in dict.fromkeys(part.source for part in poll.parts):
        lengths = _lengths(log, name, now.get(name))
        parts += [PollPart(name, n, rows, rows, TIME_MAX, None) for n, rows in enumerate(lengths)]
        if name in now:
            shift = now[name].first - before[name].first
            parts += [
                PollPart(
                    name, part.partition + shift, part.stop, part.stop, part.watermark_us, None
                )
                for part in poll.parts
                if part.source == name and part.partition >= before[name].first
            ]
            first = now[name].first + len(before[name].offsets)
            parts += [
                PollPart(name, first + n, 0, 0, TIME_MIN, None) for n in range(len(added[name]))
            ]
    empty = Poll(poll.number, poll.sent_us, tuple(parts))
    return dataclasses.replace(
        last,
        offsets={name: (*offsets, *added[name]) for name, offsets in last.offsets.items()},
        highest_us={
            name: (*highest, *[TIME_MIN] * len(added[name]))
            for name, highest in last.highest_us.items()
        },
        poll=empty.encode(),
        rejected=None,
    )


def _lengths(log: Log, name: str, topic: LiveTopic | None) -> Sequence[int]:
    lengths = log.lengths(name)
    return lengths if topic is None else lengths[: topic.first]
