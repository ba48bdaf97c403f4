"""How a stream began that goes on with one of another version of the project: ``upgrade.json``.

A view whose definition and shards are the same goes on with the state that it had; the state of any
other is made from the log, up to the same poll. Both follow from the log, from the record of the
stream before, and from how that one began. So the record has both, and whoever makes the states
again needs no folder but that of the stream itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import START_OVER, StreamRun
from tidemill.pipelines.recovery.log_parts import frontier_of, stream_log, watermarks_at
from tidemill.pipelines.run import paths
from tidemill.serving.files.records import RecordFormat, read_record, write_record


@dataclass(frozen=True)
class UpgradeRecord:
    """How a stream began.

    Attributes:
        segment: The number of the savepoint of the stream before with which it began.
        states: The `Handoff.id` of that savepoint's record.
        at_us: When it was upgraded, by the wall clock.
        carried: The views whose definition was that of the stream before. Answers that these had
            given count; if they also had as many shards, they went on with their states.
        floor_us: States that were made from the log have no frontier beyond this instant: of
            earlier requests all views of the stream before had answered.
        marks: View to the mark of each shard with which it began, 32 hexadecimal digits.
        frontiers: View to the frontier of each shard with which it began.
        releases: The releases of the stream before that the answers of `carried` views name, and
            those before them: view, shard, number, frontier and positions.
        run: The record of the stream before.
        before: How that one began, if it was upgraded, too.
    """

    segment: int
    states: str
    at_us: int
    carried: Sequence[str]
    floor_us: int
    marks: Mapping[str, Sequence[str]]
    frontiers: Mapping[str, Sequence[int]]
    releases: Sequence[Mapping[str, Any]]
    run: StreamRun
    before: UpgradeRecord | None

    def kept(self, run: StreamRun) -> list[str]:
        """Return the views that went on with the states of the stream before.

        Args:
            run: The record of the stream.
        """
        return list(self.carried) if self.run.shards == run.shards else []

    def write(self, folder: Path) -> None:
        """Write ``upgrade.json`` into the folder of a stream."""
        write_record(folder / paths.UPGRADE, _UPGRADE, dataclasses.asdict(self))

    @staticmethod
    def read(folder: Path) -> UpgradeRecord:
        """Read ``upgrade.json`` of a stream that was upgraded.

        Raises:
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        return _of_json(read_record(folder / paths.UPGRADE, _UPGRADE))

    @staticmethod
    def of(run: StreamRun, folder: Path) -> UpgradeRecord | None:
        """Return how a stream began; None if it began with the states of a build.

        Args:
            run: The record of the stream.
            folder: The folder of the stream.

        Raises:
            StateError: As `read`.
        """
        return None if run.upgraded_from is None else UpgradeRecord.read(folder)


def _of_json(content: Mapping[str, Any]) -> UpgradeRecord:
    before = content["before"]
    return UpgradeRecord(
        **{
            **content,
            "run": StreamRun(**content["run"]),
            "before": None if before is None else _of_json(before),
        }
    )


_UPGRADE: Final = RecordFormat(
    name="tidemill-upgrade",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(UpgradeRecord)),
    remedy=START_OVER,
)


def began_at(config: Configuration, run: StreamRun) -> dict[str, list[int]]:
    """Return the frontier of each shard, by view, of the states that a stream began with.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.
    """
    project = config.project
    upgrade = UpgradeRecord.of(run, config.current.stream_folder)
    if upgrade is not None:
        return {view.name: list(upgrade.frontiers[view.name]) for view in project.views}
    watermarks = watermarks_at(stream_log(config.current, config.project), project, run.as_of_us)
    return {
        view.name: [frontier_of(project, view, watermarks)] * config.shards
        for view in project.views
    }
