"""States of views that are made from history, beside the stream that runs, and brought up to it.

The promises:

* `Rebuild.begin` takes all rows up to the stream's last savepoint, writes what history gives into
  the stores, and disturbs nothing: nobody reads it.
* `Rebuild.finish` takes what came since, up to the savepoint at which the stream stopped. That is
  the work for which the stream stands still, so it does not depend on how long history is.
* The states are those of `pipelines.recovery.stream_beginning.operators_at` there, bit for bit: in
  between, the frontier is further behind than any row may be that is still accepted.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tidemill.features.definitions import EventStream, Request
from tidemill.features.kernel.advance import Publish
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.publish.changes import append_changes
from tidemill.pipelines.publish.newest_rows import newest_per_entity
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.handoff import Handoff, StreamRun
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.republish import keeps_frontiers, publish_shard
from tidemill.pipelines.recovery.store_fills import new_fills
from tidemill.pipelines.recovery.stream_beginning import (
    begin_at,
    operators_at,
    part_between,
    watermarks_after,
)
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.run.holder import this_holder
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.publications import named_publications
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.sequence import decode_batches
from tidemill.pipelines.stream.shard import shard_poll
from tidemill.pipelines.stream.wire_format import published
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.database import OnlineDatabase
from tidemill.serving.online.fills import FillState
from tidemill.serving.online.parcels import parcels_of
from tidemill.serving.online.rows import KeySpace


@dataclass
class Rebuild:
    """The states of some views.

    Attributes:
        config: The configuration of the new version, with the folders of the stream.
        run: The record of the stream.
        views: The views.
        progress: Where progress is shown.
        operators: Their operators, by view and shard.
        rows: How many rows of the log they have taken.
    """

    config: Configuration
    run: StreamRun
    views: Collection[str]
    progress: Progress
    operators: dict[tuple[str, int], ShardOperator] = field(default_factory=dict)
    rows: int = 0

    def __post_init__(self) -> None:
        self._upgrade = UpgradeRecord.of(self.run, self.config.current.stream_folder)
        self._positions: Mapping[str, Sequence[int]] = {}
        self._fills = RunFills({})

    def begin(self, savepoint: Handoff) -> None:
        """Take the rows up to a savepoint, and write what they give into the stores.

        Args:
            savepoint: Its record.
        """
        config, least_us = self.config, least_frontier(savepoint)
        self._positions = savepoint.positions
        # Below it nothing comes any more that is accepted.
        floors = {
            name: least_us - config.project.view(name).stream.lateness_us - 1 for name in self.views
        }
        known = watermarks_after(config, self.run, self._upgrade, savepoint.polls)
        total = len(self.views) * config.shards
        with self.progress.stage("make states from history", total=total, unit="shards") as stage:
            for operator in operators_at(config, savepoint.positions, known, floors):
                self.operators[operator.key.view, operator.key.shard] = operator
                stage.note(operator.key.view)
                stage.advance(1)
        streams = {config.project.view(name).stream.name for name in self.views}
        self.rows = sum(sum(savepoint.positions[name]) for name in streams)
        self._write_offline(savepoint)

    def begin_fills(self, savepoint: Handoff) -> None:
        """Fill the online store; readers see nothing of it yet.

        Args:
            savepoint: The record of the savepoint of `begin`.
        """
        if not self.views:
            return
        config = self.config
        database = open_database(config.online_store)
        try:
            if not keeps_frontiers(config.online_store):
                return
            self._drop_left(database)
            sizes = {name: self.operators[name, 0].state.n_entities for name in self.views}
            begun = replace(self.run, positions=savepoint.positions, digests=savepoint.digests)
            made = new_fills(
                config,
                database,
                replace(begun, fill_cuts=None),
                list(self.views),
                sizes.__getitem__,
            )
            writer = database.take_token(made, this_holder(config.root))
            self._fills = RunFills({fill.space.view: fill for fill in made}).written_by(writer)
            with self.progress.stage(
                "fill the online store", len(self.operators), "shards"
            ) as stage:
                for (name, _), operator in self.operators.items():
                    stage.note(name)
                    publish_shard(database, config.project.view(name), operator, self._fills)
                    stage.advance(1)
        finally:
            database.close()

    @property
    def cuts(self) -> dict[str, str]:
        """The cut that the rows of each view in the online store were begun with."""
        return {name: fill.cuts for name, fill in self._fills.fills.items()}

    def _drop_left(self, database: OnlineDatabase) -> None:
        """Remove fills of these views that an upgrade which was killed has left."""
        root = this_holder(self.config.root).root
        project = self.config.project
        spaces = [KeySpace.of(project.name, project.view(name)) for name in self.views]
        left = [
            fill
            for fill in database.fills(spaces)
            if fill.state is FillState.FILLING
            and (fill.writer is None or fill.writer.holder.root == root)
        ]
        if left:
            database.take_token(left, this_holder(self.config.root))
            database.drop_fills(left)

    def _write_offline(self, savepoint: Handoff) -> None:
        """Write the offline logs up to the frontiers, in place of those of an earlier time."""
        if self.run.offline is None:
            return
        config, folder = self.config, self._offline_root
        for name in self.views:
            log = OfflineLog.of(folder, config.project.view(name))
            if log.directory.exists():
                with log.alone():
                    shutil.rmtree(log.directory)
        log_history(
            [config.project.view(name) for name in self.views],
            stream_log(config.current, config.project),
            folder,
            shards=config.shards,
            until_us={name: self.operators[name, 0].state.frontier_us for name in self.views},
            positions=savepoint.positions,
        )

    @property
    def _offline_root(self) -> Path:
        return replace(self.config.current, offline=self.run.offline or 0).offline_root

    def finish(self, savepoint: Handoff, floor_us: int) -> None:
        """Take the rows up to the savepoint at which the stream has stopped.

        Args:
            savepoint: Its record.
            floor_us: No frontier goes beyond it (`UpgradeRecord.floor_us`).
        """
        config, project = self.config, self.config.project
        known = watermarks_after(config, self.run, self._upgrade, savepoint.polls)
        log = stream_log(config.current, config.project)
        plans = {name: make_plan(project.view(name)) for name in self.views}
        database = open_database(config.online_store)
        try:
            for name in self.views:
                parts = [
                    part_between(
                        log, source.name, partition, start, stop,
                        min(known[source.name][partition], floor_us),
                        has_rows=source is not project.request,
                    )
                    for source in self._sources(name)
                    for partition, (start, stop) in enumerate(
                        zip(
                            self._positions[source.name],
                            savepoint.positions[source.name],
                            strict=True,
                        )
                    )
                ]  # fmt: skip
                poll, _ = validated_poll(project, Poll(2, 0, tuple(parts)))
                for _, shard, data in shard_poll(project, plans, config.shards, poll, [name]):
                    operator = self.operators[name, shard]
                    self._take(operator, data, database, savepoint)
        finally:
            database.close()
        self._positions = savepoint.positions

    def _sources(self, view: str) -> list[EventStream | Request]:
        return [self.config.project.view(view).stream, self.config.project.request]

    def _take(
        self, operator: ShardOperator, data: bytes, database: OnlineDatabase, savepoint: Handoff
    ) -> None:
        has_log = self.run.offline is not None
        operator.publish = Publish.EVERY if has_log else Publish.NEWEST
        (release,) = operator.receive(decode_batches(data, operator.event_schema))
        before = release.mark_before
        begin_at(operator, savepoint.polls)
        name = operator.key.view
        if name in self._fills.fills:
            self._publish(operator, release, before, database)
        if has_log:
            one = published(operator, release)._replace(number=savepoint.polls)
            append_changes(
                self.config.project, self._offline_root, self.config.shards, [one],
                savepoint.segment,
            )  # fmt: skip

    def _publish(
        self, operator: ShardOperator, release: Release, before: bytes, database: OnlineDatabase
    ) -> None:
        name, view = operator.key.view, self.config.project.view(operator.key.view)
        parcels = parcels_of(
            self._fills.fills[name],
            self._fills.writer(name),
            view,
            named_publications(view, newest_per_entity(release.publications)),
            shard=operator.key.shard,
            mark_before=before,
            mark=operator.mark,
            attempt=None,
            frontier_us=operator.state.frontier_us,
        )
        database.publish(parcels)


def least_frontier(savepoint: Handoff) -> int:
    """Return the least frontier of a savepoint: earlier requests were answered by all views."""
    return min(min(frontiers) for frontiers in savepoint.frontiers.values())
