"""Removing rows from the live log by age, once the builds of its generation have them.

Live rows are on the disk once in the live log, and once more in the builds. With
``stream.keep_live`` the live log keeps only what the builds do not have, and what is younger. The
promises:

* Nothing is lost: a row is removed only if every build of the generation has it, and it is read
  from the build then. So no recovery, window, training or replay needs what is removed.
* Whole files are removed, the oldest first, after the record that has the digest of their rows
  (`pipelines.io.live.removed`). Whoever is killed between the two leaves files that are removed
  the next time.
* The clock of the log decides, the last receipt, and not that of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tidemill.features.contract import write_instant
from tidemill.features.definitions import Project
from tidemill.features.errors import Locked
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.build_manifest import BUILD_RECORD
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.removed import RemovedRows
from tidemill.pipelines.io.log import RECEIVED, ROWS, Log
from tidemill.pipelines.io.log_files import LogFile, first_position
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.files.locks import lock
from tidemill.serving.generations.current import Current


def remove_beside_streams(config: Configuration, progress: Progress) -> int:
    """Remove what `remove_old_rows` does, unless a stream of the generation runs.

    Returns:
        How many rows were removed; 0 if a stream runs: the next one does it when it starts.
    """
    if not config.is_live or config.stream.keep_live_us is None:
        return 0
    current = config.pin().current
    try:
        with lock(current.stream_lock, "run this generation's stream"):
            return remove_old_rows(config, current, progress)
    except Locked:
        return 0


def remove_old_rows(config: Configuration, current: Current, progress: Progress) -> int:
    """Remove old rows from the live log of a generation; return how many.

    Args:
        config: The configuration.
        current: The folders of the generation, of which no stream runs but the caller's.
        progress: Where it is said.

    Raises:
        DamagedFile: The log is damaged.
        StateError: A record is.
    """
    live, keep_us = LiveLog(current.folder / LIVE, config.project), config.stream.keep_live_us
    if keep_us is None or not live.exists or (until_us := live.read_until_us()) is None:
        return 0
    before, before_us = RemovedRows.read(live.folder), until_us - keep_us
    builds = [path.parent for path in current.folder.glob(f"build-??????/{BUILD_RECORD}")]
    first: dict[str, list[int]] = {}
    for name, topic in live.topics().items():
        held = _held_by_all(builds, name, topic.first, len(topic.offsets))
        known = [*before.first.get(name, ()), *[0] * len(topic.offsets)]
        first[name] = [
            max(
                known[partition],
                _first_kept(live.folder, current, name, topic.first + partition, end, before_us),
            )
            for partition, end in enumerate(held)
        ]
    after = replace(before, first=first, digests=_digests(current, live, first))
    rows = after.rows - before.rows
    if rows:
        replace(after, before_us=max(before_us, before.before_us)).write(live.folder)
        progress.say(
            f"{rows:,} live rows received before {write_instant(before_us)} were removed from the "
            "live log: the build has them"
        )
    _unlink(live, after.first)
    return rows


def _held_by_all(builds: Sequence[Path], name: str, first: int, partitions: int) -> list[int]:
    """Return up to which position all builds have the rows of each partition of a topic."""
    lengths = [Log(build).lengths(name)[first:] for build in builds]
    padded = [[*of_build, *[0] * partitions][:partitions] for of_build in lengths]
    return [min(of_partition) for of_partition in zip(*padded, strict=True)]


def _first_kept(
    live: Path, current: Current, name: str, partition: int, held: int, before_us: int
) -> int:
    """Return the position after the last file of a partition that can go; 0 for none."""
    log, first = Log(current.build_folder, live), 0
    paths = sorted((live / ROWS / name).glob(f"{partition:05d}-*.arrow"))
    for path, end in zip(paths, _ends(log, name, partition, paths), strict=True):
        if end > held or end <= first_position(path):
            break
        last = log.read_span(name, partition, end - 1, end).column(RECEIVED)[0].as_py()
        if last >= before_us:
            break
        first = end
    return first


def _ends(log: Log, name: str, partition: int, paths: Sequence[Path]) -> list[int]:
    """Return where the rows end that are read from each file."""
    following = [first_position(path) for path in paths[1:]]
    return [*following, log.digests(name, partition).rows] if paths else []


def _digests(
    current: Current, live: LiveLog, first: Mapping[str, Sequence[int]]
) -> dict[str, list[str]]:
    log, topics = Log(current.build_folder, live.folder), live.topics()
    return {
        name: [
            str(log.digest_below(name, topics[name].first + partition, position))
            for partition, position in enumerate(positions)
        ]
        for name, positions in first.items()
    }


def _unlink(live: LiveLog, first: Mapping[str, Sequence[int]]) -> None:
    """Remove the files of which nothing is read from the first position that is kept on."""
    topics = live.topics()
    for name, positions in first.items():
        for partition, position in enumerate(positions):
            pattern = f"{topics[name].first + partition:05d}-*.arrow"
            paths = sorted((live.folder / ROWS / name).glob(pattern))
            for path, after in zip(paths, [*map(first_position, paths[1:]), None], strict=True):
                # The last one may have got more rows since a kill.
                end = LogFile.of(path, first_position(path), None).end if after is None else after
                if end <= position:
                    path.unlink()


def removed_faults(current: Current, project: Project) -> list[str]:
    """Compare the rows that a build has with what was removed from the live log.

    Returns:
        What differs, a sentence each.
    """
    live = LiveLog(current.folder / LIVE, project)
    if not live.exists:
        return []
    if not (removed := RemovedRows.read(live.folder)).rows:
        return _unrecorded(live)
    found = _digests(current, live, removed.first)
    return [
        f"partition {partition} of {name!r}: the first {removed.first[name][partition]:,} rows of "
        "the build are not those that were removed from the live log"
        for name, digests in removed.digests.items()
        for partition, digest in enumerate(digests)
        if found[name][partition] != digest
    ]


def _unrecorded(live: LiveLog) -> list[str]:
    """Return which partitions of a live log lack rows that no record says were removed."""
    faults, topics = [], live.topics()
    for name, positions in live.sealed().positions.items():
        for number, position in enumerate(positions, start=topics[name].first):
            paths = sorted((live.folder / ROWS / name).glob(f"{number:05d}-*.arrow"))
            if begin := first_position(paths[0]) if paths else position:
                faults.append(
                    f"partition {number} of {name!r}: the live log has no rows below position "
                    f"{begin:,}, and the record of what was removed (removed.json) is gone"
                )
    return faults


def renew_removed(current: Current, project: Project) -> None:
    """Digest the rows that were removed anew, after some of them were forgotten."""
    live = LiveLog(current.folder / LIVE, project)
    if live.exists and (removed := RemovedRows.read(live.folder)).rows:
        digests = _digests(current, live, removed.first)
        replace(removed, digests=digests).write(live.folder)
