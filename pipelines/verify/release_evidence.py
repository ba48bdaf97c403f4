"""The releases of a stream as evidence, by view, shard and number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.features.contract import TIME_MIN, Int64Array
from tidemill.features.definitions import FeatureView
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.release_log import place_of, read_release_lines
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord, began_at
from tidemill.pipelines.verify.source_history import History, PositionVector, Seen


@dataclass(frozen=True)
class Evidence:
    """What a stream recorded about its own steps.

    Attributes:
        releases: By view, shard and number: the frontier and the next position of each event
            partition.
        handoff_us: View to the frontier of the state that the stream started from; `TIME_MIN`
            without such a state.
        handoff: Source to the positions of that state.
        exact: Whether the stream ran in exact mode; else in eager mode.
        shards: How many shards each view has.
        stream_until_us: Where the stream ended.
        former: If it goes on with a stream of another version: the number of that one's last poll,
            and how many shards it had.
    """

    releases: Mapping[tuple[str, int, int], tuple[int, PositionVector]]
    handoff_us: Mapping[str, int]
    handoff: Mapping[str, PositionVector]
    exact: bool
    shards: int
    stream_until_us: int
    former: tuple[int, int] | None = None

    def seen(self, view: FeatureView, shard: int, number: int, arrived_us: int) -> Seen | None:
        """Return which events an answer can have used; None if its release is not recorded.

        Args:
            view: The view.
            shard: The shard.
            number: The number of the release.
            arrived_us: When the request arrived.
        """
        found = self.releases.get((view.name, shard, number))
        if found is None:
            return None
        if self.exact:
            return Seen(found[1])
        earlier = self.releases.get((view.name, shard, number - 1))
        before = self.handoff.get(view.stream.name, ()) if earlier is None else earlier[1]
        return Seen(found[1], before, arrived_us)

    def frontier_before(self, view: str, shard: int, number: int) -> int:
        """Return the frontier before a release."""
        found = self.releases.get((view, shard, number - 1))
        return self.handoff_us.get(view, TIME_MIN) if found is None else found[0]

    def frontiers(self, view: str, shards: Int64Array, numbers: Int64Array) -> FrontierColumns:
        """Return the frontiers of many releases and of those before them."""
        pairs, inverse = np.unique(np.stack([shards, numbers], 1), axis=0, return_inverse=True)
        distinct: list[list[int]] = [pair.tolist() for pair in pairs]
        found = [self.releases.get((view, shard, number)) for shard, number in distinct]
        known = np.array([release is not None for release in found], np.bool_)
        own = np.array([TIME_MIN if f is None else f[0] for f in found], np.int64)
        before = np.array([self.frontier_before(view, s, n) for s, n in distinct], np.int64)
        rows = inverse.ravel()
        return FrontierColumns(known[rows], own[rows], before[rows])

    def applied(self, view: FeatureView, partitions: int) -> Int64Array:
        """Return the positions up to which the last release of each shard has applied events.

        Args:
            view: The view.
            partitions: How many partitions its stream has.

        Returns:
            int64, ``(shards, partitions)``.
        """
        begin = self.handoff.get(view.stream.name, (0,) * partitions)
        last: dict[int, tuple[int, PositionVector]] = {}
        for (name, shard, number), (frontier_us, positions) in self.releases.items():
            if name != view.name or number < last.get(shard, (0, begin))[0]:
                continue
            # In exact mode rows wait until the frontier moves, also those that come late.
            if not self.exact or frontier_us > self.frontier_before(name, shard, number):
                last[shard] = number, positions
        found = [last.get(shard, (0, begin))[1] for shard in range(self.shards)]
        return np.array(found, np.int64).reshape(self.shards, partitions)

    def steps(
        self, view: FeatureView, shard: int, number: int
    ) -> list[tuple[int, int, PositionVector]]:
        """Return the steps of a shard up to a release.

        Returns:
            (release, frontier, event positions), in order; the handed-over state is release 0.
        """
        first = self.handoff.get(view.stream.name)
        steps = [] if first is None else [(0, self.handoff_us[view.name], first)]
        steps += sorted(
            (n, frontier, positions)
            for (name, s, n), (frontier, positions) in self.releases.items()
            if name == view.name and s == shard and n <= number
        )
        return steps


@dataclass(frozen=True, eq=False)
class FrontierColumns:
    """Frontiers of many releases.

    Attributes:
        known: bool, ``(rows,)``: whether the release is recorded.
        own: int64, ``(rows,)``: its frontier.
        before: int64, ``(rows,)``: the frontier before it.
    """

    known: np.ndarray[Any, np.dtype[np.bool_]]
    own: Int64Array
    before: Int64Array


def read_evidence(
    config: Configuration,
    history: History,
    given: Mapping[tuple[str, int, int], tuple[int, PositionVector]] | None = None,
) -> Evidence:
    """Read the releases of a run.

    Args:
        config: The configuration; its mode is used if the run's summary has none.
        history: The history of its sources.
        given: By view, shard and number: frontier and positions of the releases that the polls
            give. They stand in for releases that are not recorded: a killed run has none of its
            last ones.

    Raises:
        InputError: There is no evidence.
    """
    current, project = config.current, config.project
    releases: dict[tuple[str, int, int], tuple[int, PositionVector]] = {}

    def take(entry: Any) -> tuple[tuple[str, int, int], tuple[int, PositionVector]]:
        events = history.of(project.view(entry["view"])).partitions
        positions = tuple(map(int, entry["positions"][:events]))
        return place_of(entry), (int(entry["frontier_us"]), positions)

    for key, value in read_release_lines(current.stream_folder, take):
        releases.setdefault(key, value)
    for key, (frontier_us, positions) in (given or {}).items():
        if key not in releases:
            events = history.of(project.view(key[0])).partitions
            releases[key] = frontier_us, positions[:events]
    return evidence_of(config, StreamRun.read(current.stream_folder), releases)


def evidence_of(
    config: Configuration,
    run: StreamRun | None,
    releases: Mapping[tuple[str, int, int], tuple[int, PositionVector]],
) -> Evidence:
    """Return releases as evidence, with the states that the stream began with.

    Args:
        config: The configuration; its mode is used without a record of the run.
        run: The record of the stream.
        releases: By view, shard and number: the frontier and the positions of events.
    """
    handoff_us: dict[str, int] = {}
    handoff: dict[str, PositionVector] = {}
    if run is not None:
        handoff = {name: tuple(places) for name, places in run.positions.items()}
        for name, frontiers in began_at(config, run).items():
            handoff_us[name] = min(frontiers)
    mode = config.stream.mode if run is None else run.mode
    return Evidence(
        releases=releases,
        handoff_us=handoff_us,
        handoff=handoff,
        exact=mode == "exact",
        shards=config.shards,
        stream_until_us=(run and run.until_us) or config.splits.stream_until_us,
        former=None if run is None else _former(config, run),
    )


def _former(config: Configuration, run: StreamRun) -> tuple[int, int] | None:
    upgrade = UpgradeRecord.of(run, config.current.stream_folder)
    return None if upgrade is None else (run.polls, upgrade.run.shards or config.shards)
