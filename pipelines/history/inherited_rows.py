"""The live rows of the generation before, which a new generation goes on with.

A new generation begins with a folder of its own, and a topic may not hold again what was read of
it. So a backfill that begins one takes over what the generation before had read: its sealed rows,
cuts and rejected records, and the offsets at which reading goes on. Rows are linked, not copied. A
stream of the generation before may have read more by the time the first stream of the new one
begins, which then takes over the rest. The record of the topics is written last, and the folder
gets its name when it is whole, so what is killed is repeated.

Rows are taken over as they were judged. If a source has other columns now, its rows cannot be, and
the backfill is refused: nothing is left out silently.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.definitions import Project
from tidemill.features.errors import Locked
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.ingest.build_topics import BuildTopic
from tidemill.pipelines.ingest.live_rows import LiveRows, check_topics
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog, inherited_from
from tidemill.pipelines.io.live.live_records import LiveOrigin, Sealed
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.live.removed import RemovedRows
from tidemill.pipelines.io.log import ROWS, Log
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.serving.files.locks import lock
from tidemill.serving.generations.current import Current

_UNFINISHED = "live.unfinished"
_REPLACED = "live.replaced"


def take_over(
    current: Current, project: Project, log: Log, topics: Mapping[str, LiveTopic]
) -> None:
    """Take over what the generation before has read since a backfill began this one.

    Nothing happens once a stream of this generation has read something.

    Args:
        current: The folders of the generation.
        project: The project.
        log: The log of its build.
        topics: Its topics.

    Raises:
        Locked: A stream of the generation before runs still.
        StateMismatch: Its topics or the columns of its rows are others.
    """
    live, replaced = LiveLog(current.folder / LIVE, project), current.folder / _REPLACED
    shutil.rmtree(replaced, ignore_errors=True)  # of a start that was killed
    if (before := _source(current, project)) is None:
        return
    former = LiveLog(before.folder / LIVE, project)
    with _ended(before):
        former.seal(before.newest_build, TIME_MAX)
        if live.exists and former.sealed().number <= live.sealed().number:
            return
        check_topics(
            former.topics(),
            former.sealed(),
            Log(before.newest_build, former.folder),
            {name: BuildTopic(topic.topic, topic.offsets) for name, topic in topics.items()},
            project,
        )
        unfinished = current.folder / _UNFINISHED
        sealed, last = former.sealed(), former.polls.last()
        inherit(former, sealed, last, before.generation, unfinished, log, topics, project)
        if live.folder.exists():
            live.folder.rename(replaced)  # a part of it would be taken for a damaged one
        unfinished.rename(live.folder)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _ended(before: Current) -> Iterator[None]:
    """Hold the lock of the stream of the generation before, which must have ended.

    Raises:
        Locked: It runs still.
    """
    with ExitStack() as held:
        try:
            held.enter_context(lock(before.stream_lock, "go on with its live rows"))
        except Locked as error:
            raise Locked(
                f"{str(error).partition(';')[0]}: it is the stream of the generation before, which "
                "runs on; end it first"
            ) from None
        yield


def _source(current: Current, project: Project) -> Current | None:
    """Return the generation that has read what this one goes on with; None if there is none."""
    if LiveLog(current.folder / LIVE, project).exists:
        generation = inherited_from(current.folder / LIVE)
    else:
        # A version that took nothing over in a backfill, or a kill while rows were taken over.
        generation = BuildManifest.read(current.build_folder).parent
    while generation is not None:
        before = Current(current.root, generation, build=0, offline=0, stream=0)
        if not LiveLog(before.folder / LIVE, project).exists:
            return None
        # That one may itself only have taken rows over.
        generation = inherited_from(before.folder / LIVE)
        if generation is None or not (before.folder.parent / generation).exists():
            return before
    return None


def inherit_live_rows(
    live: LiveRows,
    before: Current,
    folder: Path,
    log: Log,
    project: Project,
    topics: Mapping[str, BuildTopic],
) -> None:
    """Make the live log of a new generation from that of the one before.

    Args:
        live: The rows of the generation before that are in the build.
        before: The folders of the generation before.
        folder: The folder of the new live log.
        log: The log of the build.
        project: The project.
        topics: The topics of the build.
    """
    former = LiveLog(before.folder / LIVE, project)
    now = {
        name: LiveTopic(topic.topic, log.partitions(name) - len(topic.offsets), topic.offsets)
        for name, topic in topics.items()
    }
    generation = inherited_from(former.folder) or before.generation
    inherit(former, live.sealed, live.last, generation, folder, log, now, project)


def inherit(
    former: LiveLog,
    sealed: Sealed,
    last: LoggedPoll | None,
    generation: str,
    folder: Path,
    log: Log,
    topics: Mapping[str, LiveTopic],
    project: Project,
) -> None:
    """Make a live log of what another one has sealed.

    Args:
        former: The other live log; a stream may go on with it meanwhile.
        sealed: How far it is sealed.
        last: The last poll that is sealed; None if there is none.
        generation: Its generation.
        folder: The folder of the new live log.
        log: The log of the build.
        topics: The topics of the build.
        project: The project.
    """
    shutil.rmtree(folder, ignore_errors=True)
    live = LiveLog(folder, project)
    _take_rows(former, live, topics)
    if (removed := RemovedRows.read(former.folder)).rows:
        removed.write(folder)  # the build has these rows
    begun = former.topics()
    # A topic may have got more partitions: some that were read, from their beginning on, into the
    # partitions that the log began with, and others that are read from the build's offsets. The
    # new log has a partition for each.
    added = {name: topic.offsets[len(sealed.offsets[name]) :] for name, topic in topics.items()}
    if last is not None:
        live.polls.append(_renumbered(last, log, begun, topics, added))
        live.polls.close()
    live.write_sealed(
        Sealed(
            sealed.number,
            {name: _padded(sealed.positions[name], topic) for name, topic in topics.items()},
            {name: [*sealed.offsets[name], *more] for name, more in added.items()},
        )
    )
    live.begin(
        {
            name: dataclasses.replace(
                topic,
                offsets=(
                    *_padded(begun[name].offsets, topic)[: len(sealed.offsets[name])],
                    *added[name],
                ),
                id=begun[name].id,
            )
            for name, topic in topics.items()
        },
        LiveOrigin(former.origin().as_of_us, generation, sealed.number),
    )


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
            new = range(len(before[name].offsets), len(now[name].offsets))
            parts += [PollPart(name, now[name].first + n, 0, 0, TIME_MIN, None) for n in new]
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


def _padded(numbers: Sequence[int], topic: LiveTopic) -> list[int]:
    """Return numbers of partitions, with 0 for those that the topic has got since."""
    return [*numbers, *[0] * (len(topic.offsets) - len(numbers))]


def _lengths(log: Log, name: str, topic: LiveTopic | None) -> Sequence[int]:
    lengths = log.lengths(name)
    return lengths if topic is None else lengths[: topic.first]
