"""Handed-over states, from which a stream starts, and the record that describes them.

A backfill writes them to ``states`` in the folder of its build: each operator's state of all rows
received before the stream begins. A stream that stops at a savepoint writes them to
``stops/NUMBER`` in its folder: the states of the operators and of the joining stage. The promises:

* The states are files of `pipelines.stream.state_files`. Their folder is valid only with the record
  ``handoff.json``, which is written last. So a killed run leaves no incomplete folder that is used.
* The record names definitions, shards, positions, mode, and the hash of every file. States that do
  not match are refused by name.
* Each run of the stream between two such folders is a *segment* with a number. Its files have the
  number in their names (`serving.files.segment_names`), so the files of a killed run can be told
  from those that count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tidemill.features.definitions import Project, Request
from tidemill.features.definitions.canonical import spec_hash
from tidemill.features.errors import StateMismatch, StateVersionError
from tidemill.pipelines.io.log import Log, declared_columns
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.state_files import file_hashes
from tidemill.serving.files.records import RecordFormat, write_record
from tidemill.serving.files.records import read_record as read_record_of
from tidemill.serving.generations.current import Current
from tidemill.serving.stores.online_places import Clock


@dataclass(frozen=True)
class Handoff:
    """Describes a folder of states.

    Attributes:
        kind: The writer: a backfill, or a stream that stops at a savepoint.
        as_of_us: The states contain all rows received before this instant.
        positions: Source to the next position of each partition.
        views: View to the hash of its definition.
        shards: The number of shards of each view.
        segment: The number of the segment that ends here; 0 for a backfill.
        frontiers: View to the frontier of each shard.
        polls: The number of the last poll that the states contain; 0 for a backfill.
        marks: View to the mark of each shard's last release (`pipelines.stream.marks`), 32
            hexadecimal digits.
        began: The `id` of the backfill's record that the stream began with; None for a backfill.
        mode: The mode of the stream; None for a backfill.
        files: File to the SHA-256 of its bytes.
        generation: The generation of the log that they were made from.
        digests: Source to the prefix digest of its log at ``positions``.
    """

    kind: Literal["backfill", "stop"]
    as_of_us: int
    positions: Mapping[str, list[int]]
    views: Mapping[str, str]
    shards: int
    segment: int
    frontiers: Mapping[str, list[int]]
    polls: int
    marks: Mapping[str, list[str]]
    began: str | None
    mode: str | None
    files: Mapping[str, str]
    generation: str
    digests: Mapping[str, str]

    @property
    def id(self) -> str:
        """A hash of the record, which contains the hash of every file."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write the record, which makes the folder valid."""
        write_record(folder / paths.HANDOFF, _HANDOFF, dataclasses.asdict(self))


_HANDOFF: Final = RecordFormat(
    name="tidemill-handoff",
    version=3,
    fields=frozenset(field.name for field in dataclasses.fields(Handoff)),
    remedy="run `tidemill backfill` again, and the stream from its beginning",
)


UPGRADE: Final = (
    "run the version of the project that the stream was begun with or upgraded to, or `tidemill "
    "upgrade` to go on with this one"
)
"""What to do about a stream of another version of the project."""

START_OVER: Final = (
    "restore the folder from a copy, or run `tidemill stream` without --resume to start over"
)
"""What to do about states of a savepoint that are lost or damaged."""


def read_record(folder: Path) -> Handoff:
    """Read the record of a folder of states.

    Raises:
        StateMismatch: There is no record.
        StateVersionError: Its version is not supported.
        DamagedState: It is damaged.
    """
    path = folder / paths.HANDOFF
    if not path.exists():
        raise StateMismatch(f"there is no handed-over state at {path}; run `tidemill backfill`")
    form = dataclasses.replace(_HANDOFF, remedy=START_OVER) if _of_savepoint(folder) else _HANDOFF
    return Handoff(**read_record_of(path, form))


def _of_savepoint(folder: Path) -> bool:
    return folder.parent.name == paths.SAVEPOINTS


def last_states(current: Current) -> tuple[Path, Handoff]:
    """Find the newest states: of the stream's last savepoint, else of the build.

    Raises:
        StateMismatch: There are no states.
    """
    while True:
        folder = _newest_states(current)
        try:
            return folder, read_record(folder)
        except StateMismatch:
            # A stream that runs replaces its savepoints.
            if _newest_states(current) == folder:
                raise


def _newest_states(current: Current) -> Path:
    savepoints = current.stream_folder / paths.SAVEPOINTS
    stops = [path.parent for path in savepoints.glob(f"*/{paths.HANDOFF}")]
    newest = max(stops, key=lambda folder: int(folder.name), default=None)
    return current.build_folder / paths.STATES if newest is None else newest


def cut_digests(log: Log, positions: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return the prefix digest of each source's log at a cut.

    Raises:
        StateMismatch: A log ends before the cut, or has other partitions.
    """
    found = {}
    for name, cut in positions.items():
        digest = log.prefix_digest(name, cut)
        if digest is None:
            raise StateMismatch(
                f"the log of {name!r} in {log.root} ends before positions {list(cut)}, or has "
                "other partitions; run `tidemill backfill` again"
            )
        found[name] = digest
    return found


def check_log(folder: Path, handoff: Handoff, log: Log, streams: Iterable[str]) -> None:
    """Check that states were made from the rows of a log.

    Args:
        folder: The folder of the states.
        handoff: Their record.
        log: The log at hand.
        streams: The sources whose rows are in the states.

    Raises:
        StateMismatch: They were made from other rows of one of these sources.
    """
    for name in streams:
        found = cut_digests(log, {name: handoff.positions[name]})[name]
        if found != handoff.digests[name]:
            raise StateMismatch(
                f"{folder}: the states were made from other rows of {name!r} than the log in "
                f"{log.root} has below positions {handoff.positions[name]} (generation "
                f"{handoff.generation}); run `tidemill backfill` again"
            )


def check_handoff(folder: Path, handoff: Handoff, project: Project, shards: int) -> None:
    """Check that states are of these definitions and shards, and that the files are unchanged.

    Raises:
        StateMismatch: They are not; the message says what was found and expected.
    """
    is_stream = _of_savepoint(folder)
    remedy = UPGRADE if is_stream else "run `tidemill backfill` again"
    for view in project.views:
        made_for = handoff.views.get(view.name)
        if made_for is None and is_stream:
            raise StateMismatch(
                f"view {view.name!r} is not in the stream of {folder.parent.parent}, which has "
                f"{', '.join(sorted(handoff.views))}; {remedy}"
            )
        if made_for != view.hash:
            raise StateMismatch(
                f"view {view.name!r}: the handed-over state was made for definition {made_for}, "
                f"this is {view.hash}; {remedy}"
            )
    others = sorted(handoff.views.keys() - {view.name for view in project.views})
    if others and is_stream:
        raise StateMismatch(
            f"view {others[0]!r} is in the stream of {folder.parent.parent}, and no longer in the "
            f"project; {remedy}"
        )
    if handoff.shards != shards:
        raise StateMismatch(
            f"the handed-over state has {handoff.shards} shards, the configuration says "
            f"{shards}; {remedy}"
        )
    rebuild = f"restore the folder, or {_HANDOFF.remedy}"
    for path, what in changed_files(folder, handoff):
        raise StateMismatch(f"{path} {what}; {START_OVER if _of_savepoint(folder) else rebuild}")


def changed_files(folder: Path, handoff: Handoff) -> list[tuple[Path, str]]:
    """Return the state files that are not as they were written, and what happened to each."""
    found = file_hashes(folder)
    return [
        (folder / name, "was changed after it was written" if name in found else "is missing")
        for name, written in handoff.files.items()
        if found.get(name) != written
    ]


def remove_savepoints(stream: Path, *, but: Path | None = None, before: int | None = None) -> None:
    """Remove the states of all savepoints, but of one, or of those before a segment's end."""
    for folder in (stream / paths.SAVEPOINTS).glob("*"):
        if folder != but and (before is None or int(folder.name) < before):
            shutil.rmtree(folder)


def request_hash(request: Request) -> str:
    """Return the hash of what a stream takes of a request's definition: all but a model's inputs.

    Which requests are accepted, where they go and what they wait for depend on it. Columns that the
    request has got later, and wider ones, are no part of it: the stream's record has them.
    """
    spec = request.spec(read=())
    del spec["inputs"]
    return spec_hash(spec)


Columns = Mapping[str, Sequence[Sequence[str]]]
"""Source to its declared columns, in order: name and dtype."""


def columns_of(project: Project) -> dict[str, list[list[str]]]:
    """Return the declared columns of the sources of a project, as a record has them."""
    found = declared_columns(project)
    return {name: [list(column) for column in schema.items()] for name, schema in found.items()}


RECEIPT: Final = "receipt"
"""The name of the order by receipt (`StreamRun.eager_order`)."""


@dataclass(frozen=True)
class StreamRun:
    """A stream, from its first segment to its end.

    Attributes:
        began: The `Handoff.id` of the build's states that the stream began with.
        mode: ``exact`` or ``eager``.
        poll_rows: Where polls end (`pipelines.io.replay.ReplayOptions`): releases depend on it.
        ended: Whether the stream has ended and cannot be resumed.
        generation: The generation of its log.
        as_of_us: The instant that it began at: rows received before are in those states.
        positions: Source to the position of each partition that it began at.
        digests: Source to the prefix digest of its log at ``positions``.
        offline: The number of the folder of offline logs that it adds to; None if to none.
        until_us: Once it has ended: rows received at or after this instant are not in it. None
            before, and for a stream of a version that did not record it.
        eager_order: In which order rows are taken in eager mode (`pipelines.stream.receipt`); None
            for a stream of a version that took all requests of a poll after its events.
        views: View to the hash of its definition; None for a stream of a version that did not
            record it.
        shards: The number of shards of each view; None likewise.
        clock: The clock by which readers judge the age of what it publishes: ``replay`` if its
            sources are replayed, ``wall`` if one is live.
        scored: Whether its answers have scores: the project had a model when it began.
        joiners: The number of joiners (`pipelines.stream.joiner_key`).
        request: The hash of what the stream takes of the request's definition (`request_hash`);
            None for a stream of a version that did not record it.
        apart: Whether its requests are answered each when it can be
            (`pipelines.stream.answer_join`). A stream of a version that answered all requests of a
            poll together goes on so: what was scored together is a part of the proof.
        polls: The number of the last poll that the states it began with contain.
        upgraded_from: The number of the stream that it goes on with, for another version of the
            project (`pipelines.recovery.upgrade_record`); None if it began with a build's states.
        fill_cuts: View to the cut that its rows in the online store were begun with, where that is
            not the one of `positions`; None if there is none.
        columns: The declared columns of its sources; None for a stream of a version that did not
            record it.
        definitions: The canonical form of the project (`Project.spec`), by which what it has
            answered is proven; None likewise.
        models: Which bundles score its requests, from which positions on
            (`pipelines.stream.scored_by`): each ``bundle`` with the ``positions`` of the request's
            partitions. None without a model, and for a stream of a version that did not record it.
    """

    began: str
    mode: str
    poll_rows: int
    ended: bool
    generation: str
    as_of_us: int
    positions: Mapping[str, list[int]]
    digests: Mapping[str, str]
    offline: int | None = None
    until_us: int | None = None
    eager_order: str | None = None
    views: Mapping[str, str] | None = None
    shards: int | None = None
    clock: Clock = "replay"
    scored: bool = True
    joiners: int = 1
    request: str | None = None
    apart: bool = True
    polls: int = 0
    upgraded_from: int | None = None
    fill_cuts: Mapping[str, str] | None = None
    columns: Columns | None = None
    definitions: Mapping[str, Any] | None = None
    models: Sequence[Mapping[str, Any]] | None = None

    @staticmethod
    def beginning(
        handoff: Handoff,
        mode: str,
        poll_rows: int,
        clock: Clock = "replay",
        joiners: int = 1,
        request: str | None = None,
        columns: Columns | None = None,
        definitions: Mapping[str, Any] | None = None,
    ) -> StreamRun:
        """Return the record of a stream that begins with the states of a build."""
        return StreamRun(
            began=handoff.id,
            mode=mode,
            poll_rows=poll_rows,
            ended=False,
            generation=handoff.generation,
            as_of_us=handoff.as_of_us,
            positions=handoff.positions,
            digests=handoff.digests,
            eager_order=RECEIPT,
            views=handoff.views,
            shards=handoff.shards,
            clock=clock,
            joiners=joiners,
            request=request,
            columns=columns,
            definitions=definitions,
        )

    def check_order(self) -> None:
        """Check that this version takes the rows of the stream in the order that it was begun with.

        Raises:
            StateVersionError: Another version has begun it in eager mode.
        """
        if self.mode == "eager" and self.eager_order != RECEIPT:
            raise StateVersionError(
                "this stream was begun in eager mode by a version in which an answer could use "
                "events that came after its request; this version orders rows by receipt: run "
                "`tidemill stream --mode eager` to start over"
            )

    def write(self, folder: Path, name: str = paths.STREAM_RUN, *, durable: bool = False) -> None:
        """Write ``stream.json``, or another file of the folder; ``durable`` as `atomic_write`."""
        write_record(folder / name, _STREAM, dataclasses.asdict(self), durable=durable)

    @staticmethod
    def read(folder: Path, name: str = paths.STREAM_RUN) -> StreamRun | None:
        """Read ``stream.json``, or another file; None if no stream was begun.

        Raises:
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        path = folder / name
        return StreamRun(**read_record_of(path, _STREAM)) if path.exists() else None


_NO_MODELS: Final[Mapping[str, Any]] = {"models": None}
_NO_DEFINITIONS: Final[Mapping[str, Any]] = {**_NO_MODELS, "definitions": None}
_NO_COLUMNS: Final[Mapping[str, Any]] = {**_NO_DEFINITIONS, "columns": None}
_NOT_UPGRADED: Final[Mapping[str, Any]] = {
    **_NO_COLUMNS,
    "polls": 0,
    "upgraded_from": None,
    "fill_cuts": None,
}

_STREAM: Final = RecordFormat(
    name="tidemill-stream",
    version=12,
    fields=frozenset(field.name for field in dataclasses.fields(StreamRun)),
    remedy="run `tidemill stream` without --resume to start over",
    older={
        11: _NO_MODELS,
        10: _NO_DEFINITIONS,
        9: _NO_COLUMNS,
        8: _NOT_UPGRADED,
        7: {**_NOT_UPGRADED, "apart": False},
        6: {**_NOT_UPGRADED, "apart": False, "request": None},
        5: {**_NOT_UPGRADED, "apart": False, "joiners": 1, "request": None},
        4: {**_NOT_UPGRADED, "apart": False, "scored": True, "joiners": 1, "request": None},
        3: {
            **_NOT_UPGRADED,
            **dict.fromkeys(("until_us", "eager_order", "views", "shards", "request")),
            "apart": False,
            "clock": "replay",
            "scored": True,
            "joiners": 1,
        },
    },
)
