"""Builds: the log, training table and states that one backfill makes, switched to in one step.

A build is made in ``root/generations/unfinished``, where nobody reads it. At its end it gets its
place in the folder of its generation, and then the record ``CURRENT`` names it
(`serving.generations.current`). A process that dies before has changed nothing.

A build belongs to the generation of the build before it if its log *extends* that build's log: it
has the same rows below the end of that log (`pipelines.io.log_digests`), in as many partitions.
Else history was corrected, and a new generation begins.

Files of log and training table that are the same as those of the build before are one file with
two names (`Build.share`). So a root that is built again and again has its rows once, and of each
build only what is new.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.features.errors import DamagedFile, InputError, StateVersionError
from tidemill.pipelines.engines.left_jobs import end_abandoned
from tidemill.pipelines.history.build_manifest import BUILD_RECORD, BuildManifest
from tidemill.pipelines.io.live.live_log import LIVE, inherited_from
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.log_pieces import share_files, share_log
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.served_rows import NOTHING_SERVED, ServedRows
from tidemill.pipelines.run import paths
from tidemill.serving.files.locks import is_locked, lock
from tidemill.serving.generations.current import (
    GENERATIONS,
    Current,
    changing,
    find_current,
    write_current,
)
from tidemill.serving.offline.log import OfflineLog

BUILD_LOCK: Final = "build.lock"
_UNFINISHED: Final = "unfinished"


@dataclass(frozen=True)
class Divergence:
    """Where two logs of a source differ first.

    Attributes:
        source: The source.
        reason: What differs, as a sentence's end.
    """

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def divergences(before: Log, now: Log) -> list[Divergence]:
    """Return the sources whose log does not extend what it was before.

    A source that only one of the two has is none of them: views depend on their own stream alone.
    A log that can no longer be read is one of them, because nothing says what rows it had.
    """
    found = []
    for source in sorted({*before.sources()} & {*now.sources()}):
        try:
            ends = before.lengths(source)
            digest = before.prefix_digest(source, ends)
        except (InputError, DamagedFile, StateVersionError) as error:
            found.append(Divergence(source, f"its former log cannot be read ({error})"))
            continue
        partitions = now.partitions(source)
        if partitions != len(ends):
            found.append(Divergence(source, f"it has {partitions} partitions, and had {len(ends)}"))
        elif now.prefix_digest(source, ends) != digest:
            found.append(Divergence(source, _first_difference(before, now, source, ends)))
    return found


def _first_difference(before: Log, now: Log, source: str, ends: Sequence[int]) -> str:
    lengths = now.lengths(source)
    for partition, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        if length < end:
            return f"partition {partition} has {length} rows, and had {end}"
        old, new = before.digests(source, partition), now.digests(source, partition)
        for block in range(old.whole):
            if old.blocks[block] != new.blocks[block]:
                start, stop = old.span(block)
                return f"rows {start} to {stop - 1} of partition {partition} were changed"
        cut = [0] * len(ends)
        cut[partition] = end
        if before.prefix_digest(source, cut) != now.prefix_digest(source, cut):
            start, stop = old.span(old.whole)
            return f"rows {start} to {stop - 1} of partition {partition} were changed"
    raise AssertionError(f"no partition of {source!r} differs")


@dataclass
class Build:
    """A build that is being made.

    Attributes:
        root: The root.
        before: The folders that were current when it began; None for the first build.
        generation: The id of its generation; known once its log is there (`settle`).
        because: Why its generation is a new one; empty if it is that of the build before.
    """

    root: Path
    before: Current | None
    generation: str = ""
    because: list[Divergence] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder of log, training table and states."""
        return self._unfinished / "build"

    @property
    def offline_root(self) -> Path:
        """The folder of offline logs; it takes effect if there is something in it."""
        return self._unfinished / "offline"

    @property
    def live(self) -> Path:
        """The folder of the live log, if a new generation takes one over."""
        return self._unfinished / LIVE

    @property
    def work(self) -> Path:
        """A folder for what the build needs only while it is made."""
        return self._unfinished / "work"

    @property
    def _unfinished(self) -> Path:
        return self.root / GENERATIONS / _UNFINISHED

    def settle(self) -> None:
        """Decide to which generation the build belongs; call it when its log is written."""
        if self.before is not None:
            self.because = divergences(Log(self.before.build_folder), Log(self.folder))
            if not self.because:
                self.generation = self.before.generation
                return
        self.generation = secrets.token_hex(8)

    def share(self) -> int:
        """Replace files by links to those of the build before that have the same content.

        Of logs these are pieces with the same rows (`pipelines.io.log_pieces`), of the training
        table files with the same bytes.

        Returns:
            How many bytes are shared now that were not.
        """
        if self.before is None:
            return 0
        former = self.before.build_folder
        return share_log(former, self.folder) + share_files(
            former / paths.TRAINING_TABLE, self.folder / paths.TRAINING_TABLE
        )

    @property
    def parent(self) -> str | None:
        """The generation before its own; None for the first."""
        if self.before is None:
            return None
        if self.is_new_generation:
            return self.before.generation
        return None if (former := self._former) is None else former.parent

    @property
    def reasons(self) -> list[str]:
        """Where the log of its generation began to differ from that of the parent."""
        if self.before is None or self.is_new_generation:
            return [str(divergence) for divergence in self.because]
        return [] if (former := self._former) is None else list(former.because)

    @property
    def _former(self) -> BuildManifest | None:
        """The manifest of the build before; None if that has none."""
        if self.before is None or not (self.before.build_folder / BUILD_RECORD).exists():
            return None
        return BuildManifest.read(self.before.build_folder)

    @property
    def is_new_generation(self) -> bool:
        """Whether another generation was current before, or none."""
        return self.before is None or self.before.generation != self.generation

    def finish(self, served: ServedRows = NOTHING_SERVED) -> Current:
        """Give the build its place, and make it the current one.

        Args:
            served: What the rows that readers see were made by: these folders stay.

        Raises:
            StateError: The record of the stream before cannot be read; nothing has changed.
        """
        in_use = set() if self.before is None else set(_offline_in_use(self.before))
        with changing(self.root):
            # A stream of the generation may have begun since the build did.
            target = find_current(self.root)
            if target is None or self.is_new_generation:
                target = Current(self.root, self.generation, build=0, offline=0, stream=0)
            target = dataclasses.replace(target, build=target.next_number("build"))
            target.folder.mkdir(parents=True, exist_ok=True)
            self.folder.rename(target.build_folder)
            if self.is_new_generation:
                target = dataclasses.replace(target, offline=target.next_number("offline"))
                self.offline_root.mkdir(exist_ok=True)
                self.offline_root.rename(target.offline_root)
                if self.live.exists():
                    self.live.rename(target.folder / LIVE)
            elif self.offline_root.exists():
                target = self._add_offline_logs(target)
            write_current(target)
        self._prune(target, in_use, served)
        return target

    def _add_offline_logs(self, target: Current) -> Current:
        """Put the new offline logs beside those that stay."""
        fresh = [path.relative_to(self.offline_root) for path in self.offline_root.glob("*/*")]
        if is_locked(target.stream_lock):
            # The stream adds to the logs in this folder; the new ones are of other definitions.
            for name in fresh:
                (target.offline_root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.offline_root / name).rename(target.offline_root / name)
            return target
        for log in target.offline_root.glob("*/*"):
            name = log.relative_to(target.offline_root)
            if log.is_dir() and name not in fresh:
                OfflineLog(log).link_to(OfflineLog(self.offline_root / name))
        target = dataclasses.replace(target, offline=target.next_number("offline"))
        self.offline_root.rename(target.offline_root)
        return target

    def _prune(self, target: Current, in_use: Iterable[Path], served: ServedRows) -> None:
        """Remove folders that neither the current record nor the one before it names.

        Programs that read the record before still use the folders that it named. A stream that runs
        keeps the folders of its generation. The generation before stays as it is, since its
        predictions are proven against its log, however often this one is built again. So does
        whatever has made rows that readers see.
        """
        kept = {target} if self.before is None else {target, self.before}
        parent = None
        if (target.build_folder / BUILD_RECORD).exists():
            parent = BuildManifest.read(target.build_folder).parent
        generations = {current.generation for current in kept}
        # The first stream of a generation takes over what was read since its backfill.
        read_by = inherited_from(target.folder / LIVE)
        for folder in (self.root / GENERATIONS).iterdir():
            if folder.name == _UNFINISHED or not folder.is_dir():
                continue
            if is_locked(folder / "stream.lock"):
                continue
            if folder.name not in generations:
                if folder.name not in (parent, read_by) and not _has_made(folder, served):
                    shutil.rmtree(folder)
                continue
            named = {
                path
                for current in kept
                for path in (current.build_folder, current.offline_root, current.stream_folder)
            }
            named |= {*in_use, *_offline_in_use(target)}
            for kind in ("build", "offline", "stream"):
                for path in folder.glob(f"{kind}-??????"):
                    if path not in named and not _is_served(path, served, named):
                        shutil.rmtree(path)


def _has_made(generation: Path, served: ServedRows) -> bool:
    """Tell whether readers see rows that a build or a stream of a generation has made."""
    folders = (*generation.glob("stream-??????"), *generation.glob("build-??????"))
    return any(_is_served(path, served) for path in folders)


def _is_served(folder: Path, served: ServedRows, kept: Collection[Path] = ()) -> bool:
    """Tell whether readers see rows that a build or a stream has made, and no other one kept."""
    if folder.name.startswith("build-"):
        return served.made_by_build(folder, kept)
    return folder.name.startswith("stream-") and served.made_by_stream(folder)


def _offline_in_use(current: Current) -> Iterator[Path]:
    """Yield the folder of the offline logs with which a stopped stream goes on, if it has one."""
    run = StreamRun.read(current.stream_folder)
    if run is not None and run.offline is not None:
        yield dataclasses.replace(current, offline=run.offline).offline_root


@contextmanager
def building(root: Path, *, wait: bool = False) -> Iterator[Build]:
    """Make a build while the block runs; other builds of the root are refused.

    Args:
        root: The root.
        wait: Whether to wait for another build instead.

    Raises:
        Locked: Another process makes a build.
        StateError: The root was written by another version.
        ServerNotStopped: Workers of a build whose program was killed cannot be ended.
        ServiceUnreachable, JobRefused: A job of such a build may still run on Dataflow.
    """
    generations = root / GENERATIONS
    with lock(generations / BUILD_LOCK, "make a build", wait=wait):
        # Workers of a program that was killed would write into the next build.
        end_abandoned(root / paths.JOBS)
        shutil.rmtree(generations / _UNFINISHED, ignore_errors=True)
        build = Build(root, find_current(root))
        build.folder.mkdir(parents=True)
        yield build
        shutil.rmtree(generations / _UNFINISHED, ignore_errors=True)
