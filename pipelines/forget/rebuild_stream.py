"""What a stream has written, once rows of its log are blank.

* Predictions, publications and rejected records of the subject are removed; the others stay as
  they are, byte for byte of their rows.
* The stream is repeated from the blanked log, as `verify` repeats it. Where a shard had rows of the
  subject, the counts in its releases, its state at the last savepoint, and the state of the stage
  that joins answers are replaced by those of the repeated one. Positions, frontiers and marks of
  releases do not depend on rows, and must be the same: a release in which they differ stays as it
  is, for `verify` to find.
* In eager mode they do depend on rows. Such a stream is ended: its states are removed, and it is
  not proven any more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.errors import StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.rebuild_build import is_of, renewed
from tidemill.pipelines.forget.rejected import remove_of_stream
from tidemill.pipelines.forget.rewrite_logs import Blanked
from tidemill.pipelines.forget.rewrite_outputs import replaced, rewrite_outputs, without
from tidemill.pipelines.forget.rewrite_upgrade import renewed_cuts, rewrite_upgrade
from tidemill.pipelines.forget.subject import Subject
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.recovery.handoff import (
    Handoff,
    StreamRun,
    check_handoff,
    cut_digests,
    last_states,
    request_hash,
)
from tidemill.pipelines.recovery.log_parts import log_of_run, stream_log
from tidemill.pipelines.recovery.release_log import place_of, read_releases
from tidemill.pipelines.recovery.repeat import Repeat
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.recovery.stream_beginning import repeat_stream
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.release_line import LINE, release_line
from tidemill.pipelines.stream.state_files import (
    file_hashes,
    handed_over,
    state_path,
    write_state,
)
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.read_files import read_table
from tidemill.serving.generations.current import Current
from tidemill.serving.publications import ENTITY_KEY

_AGAIN: Final = "restore it from a copy"
_COUNTS: Final = ("events", "answers", "publications", "seen", "kernel")
"""The fields of a release that say how many rows it had."""


@dataclass
class Rewritten:
    """What became of a stream.

    Attributes:
        predictions: How many were removed.
        publications: Likewise.
        rejected: How many rejected records were removed.
        states: How many states of a savepoint were made again, or removed.
        releases: How many releases have other counts.
        is_closed: Whether it was ended, because it cannot be repeated.
    """

    predictions: int = 0
    publications: int = 0
    rejected: int = 0
    states: int = 0
    releases: int = 0
    is_closed: bool = False


def check_stream(current: Current) -> None:
    """Check that the log has the rows that a stream and its last savepoint were made from.

    Args:
        current: The folders of the stream, before anything of its log is blanked.

    Raises:
        StateMismatch: It has other rows.
    """
    log, folder = log_of_run(current, None), current.stream_folder
    found: dict[str, StreamRun | Handoff] = {}
    for name in (paths.STREAM_RUN, paths.STREAM_BEGINS):
        if (run := StreamRun.read(folder, name)) is not None:
            found[name] = run
    if any((folder / paths.SAVEPOINTS).glob(f"*/{paths.HANDOFF}")):
        found[paths.HANDOFF] = last_states(current)[1]
    for name, record in found.items():
        if cut_digests(log, record.positions) != dict(record.digests):
            raise StateMismatch(
                f"{folder}: the log does not have the rows that {name} names: it was changed, and "
                "nothing is forgotten until it is right; run `tidemill verify` to see what differs"
            )


class StreamRewriter:
    """Rewrites the folder of a stream, which is a copy.

    Args:
        config: The configuration, with the folders of the stream.
        subject: Whom to forget.
        blanked: What was blanked in the log of its generation.
        renewed: Ids of the records of states that builds have, and digests, before to after;
            digests of the stream's own records are added.
    """

    def __init__(
        self,
        config: Configuration,
        subject: Subject,
        blanked: Blanked,
        renewed: dict[str, str],
    ) -> None:
        self._config, self._subject, self._blanked = config, subject, blanked
        self._renewed, self._folder = renewed, config.current.stream_folder
        self._done = Rewritten()

    def run(self) -> Rewritten:
        """Rewrite everything.

        Raises:
            StateMismatch: The states at the last savepoint are not those that were written.
            StateError: A record cannot be read.
        """
        self._remove_predictions()
        self._remove_publications()
        request = self._config.project.request.name
        asked = self._blanked.of_requests(request)
        self._done.rejected = remove_of_stream(
            self._folder / paths.REJECTED_BY_STREAM,
            self._subject,
            request,
            {partition: set(found.tolist()) for partition, found in asked.items()},
        )
        if self._blanked.rows:
            if (run := StreamRun.read(self._folder)) is not None:
                rewrite_upgrade(self._config, run, self._renewed)
            for name in (paths.STREAM_RUN, paths.STREAM_BEGINS):
                self._renew_run(name)
            if (run := StreamRun.read(self._folder)) is not None:
                self._rebuild(run)
        return self._done

    def _remove_predictions(self) -> None:
        forgotten = self._blanked.of_requests(self._config.project.request.name)
        if not forgotten:
            return

        def change(rows: pa.Table) -> pa.Table:
            partitions = rows.column("partition").to_numpy()
            positions = rows.column("position").to_numpy()
            gone = np.zeros(len(rows), np.bool_)
            for partition, found in forgotten.items():
                gone |= (partitions == partition) & np.isin(positions, found)
            return without(rows, gone)

        self._done.predictions = rewrite_outputs(self._folder / paths.PREDICTIONS, change)

    def _remove_publications(self) -> None:
        key = pa.scalar(self._subject.text.encode(), pa.binary())

        def change(rows: pa.Table) -> pa.Table:
            same = pc.equal(rows.column(ENTITY_KEY), key)
            return without(rows, same.to_numpy(zero_copy_only=False))

        for view in self._config.project.views:
            if view.entity.name != self._subject.entity.name:
                continue
            folder = self._folder / paths.PUBLICATIONS / view.name
            self._done.publications += rewrite_outputs(folder, change)

    def _renew_run(self, name: str) -> None:
        run = StreamRun.read(self._folder, name)
        if run is not None:
            log = stream_log(self._config.current, self._config.project)
            digests = cut_digests(log, run.positions)
            self._renewed.update(renewed(run.digests, digests))
            began = self._renewed.get(run.began, run.began)
            run = renewed_cuts(run, log, self._renewed)
            dataclasses.replace(run, began=began, digests=digests).write(self._folder, name)

    def _rebuild(self, run: StreamRun) -> None:
        """Repeat the stream, and replace what depends on the blanked rows."""
        stops, handoff = self._last_states()
        of_views = {view.name: view.hash for view in self._config.project.views}
        of_request = run.request in (None, request_hash(self._config.project.request))
        if run.views != of_views or run.shards != self._config.shards or not of_request:
            self._remove_states()
            return
        if Mode(run.mode) is Mode.EAGER:
            # There the instant of an answer depends on what came before it, of whatever entity.
            self._remove_states()
            dataclasses.replace(run, ended=True).write(self._folder)
            self._done.is_closed = True
            return
        found = {place_of(one): one for one in read_releases(self._folder)}
        until = max([number for *_, number in found] + [0 if handoff is None else handoff.polls])
        if not until:
            return
        changed: dict[tuple[str, int, int], str] = {}
        repeat, _ = repeat_stream(self._config, run)
        at = 0 if handoff is None else handoff.polls
        if handoff is not None and stops is not None and at == run.polls:
            self._replace_states(stops, handoff, repeat)
        for part in repeat.polls(until, {at}):
            for operator, release in part.releases:
                self._count_anew(operator, release, found, changed)
            if handoff is not None and stops is not None and part.last_poll == at:
                self._replace_states(stops, handoff, repeat)
        self._write_releases(changed)

    def _last_states(self) -> tuple[Path | None, Handoff | None]:
        """Return the states of the last savepoint; remove those of others, which do not count."""
        try:
            folder, handoff = last_states(self._config.current)
        except StateMismatch:
            folder, handoff = None, None
        counts = handoff is not None and handoff.kind == "stop"
        for other in (self._folder / paths.SAVEPOINTS).glob("*"):
            if not counts or other != folder:
                for path in other.glob("*"):
                    path.unlink()
        if not counts or handoff is None or folder is None:
            return None, None
        if is_of(self._config.project, self._config.shards, handoff):
            check_handoff(folder, handoff, self._config.project, self._config.shards)
        return folder, handoff

    def _remove_states(self) -> None:
        """Remove the states of a stream of other definitions, which cannot be resumed."""
        for path in (self._folder / paths.SAVEPOINTS).rglob("*"):
            if path.is_file():
                path.unlink()
                self._done.states += path.suffix == ".state"

    def _write_releases(self, changed: Mapping[tuple[str, int, int], str]) -> None:
        """Replace the lines of releases."""
        self._done.releases = len(changed)

        def anew(lines: list[str]) -> list[str]:
            return [changed.get(place_of(json.loads(line)), line) for line in lines]

        def change(rows: pa.Table) -> pa.Table:
            return replaced(rows, LINE, anew(rows.column(LINE).to_pylist()))

        if not changed:
            return
        rewrite_outputs(self._folder / paths.RELEASES, change)
        # Versions without parts wrote files of lines.
        for path in sorted((self._folder / paths.RELEASES).glob("*.jsonl")):
            lines = path.read_text().splitlines()
            if (made := anew(lines)) != lines:
                write_text(path, "\n".join(made) + "\n")

    def _count_anew(
        self,
        operator: ShardOperator,
        release: Release,
        found: Mapping[tuple[str, int, int], Mapping[str, Any]],
        changed: dict[tuple[str, int, int], str],
    ) -> None:
        """Note the line of a release whose counts are others now."""
        key = operator.key
        place = key.view, key.shard, release.number
        entry = found.get(place)
        if entry is None or key.shard not in self._blanked.shards.get(key.view, ()):
            return
        right = json.loads(release_line(operator, release))
        others = [name for name in right if name not in _COUNTS]
        if any(entry.get(name) != right[name] for name in others):
            return  # it was wrong before; `verify` says so
        anew = {**entry, **{name: right[name] for name in _COUNTS}}
        if anew != entry:
            changed[place] = json.dumps(anew)

    def _replace_states(self, folder: Path, handoff: Handoff, repeat: Repeat) -> None:
        for operator in repeat.operators.values():
            key = operator.key
            if key.shard not in self._blanked.shards.get(key.view, ()):
                continue
            path = state_path(folder, key)
            for other in folder.glob(f"{path.stem}.*{path.suffix}"):
                other.unlink()  # a base, and what came since
            write_state(path, handed_over(operator))
            self._done.states += 1
        repeat.joiners.write(folder)
        log = stream_log(self._config.current, self._config.project)
        new = dataclasses.replace(
            handoff,
            began=None
            if handoff.began is None
            else self._renewed.get(handoff.began, handoff.began),
            files=file_hashes(folder),
            digests=cut_digests(log, handoff.positions),
        )
        new.write(folder)
        written = Savepoint.read(self._folder)
        if written is not None and written.states == handoff.id:
            Savepoint.of(new).write(self._folder)


def _drop(path: Path, rows: pa.Table, gone: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """Write a file without some rows; without any it is removed. Return how many went."""
    count = int(gone.sum())
    if count == len(rows):
        path.unlink()
    elif count:
        write_rows(path.parent, rows.filter(pa.array(~gone)), path.stem)
    return count


def remove_offline(folder: Path, subject: Subject) -> int:
    """Remove the change points of a subject from offline logs; return how many.

    Args:
        folder: A folder with offline logs.
        subject: The subject.
    """
    count, column = 0, subject.entity.join_key
    for path in sorted(folder.rglob("*.parquet")):
        rows = read_table(path, _AGAIN)
        if column not in rows.column_names:
            continue
        same = pc.fill_null(pc.equal(rows.column(column), pa.scalar(subject.key)), False)
        count += _drop(path, rows, same.to_numpy(zero_copy_only=False))
    return count
