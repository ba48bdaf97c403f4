"""Where a stream begins, and where its polls end, as the log says it."""

from __future__ import annotations

import numpy as np

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.stream.marks import first_mark
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.verify.follow.release_chain import Place, PollEnds, Reached, poll_ends
from tidemill.pipelines.verify.release_evidence import Evidence
from tidemill.serving.generations.current import Current


def beginning(config: Configuration, run: StreamRun, evidence: Evidence) -> dict[Place, Reached]:
    """Return the states that a stream began with, as if they were releases.

    Args:
        config: The configuration.
        run: The record of the stream.
        evidence: It has the frontiers of these states.
    """
    project, found = config.project, {}
    upgrade = UpgradeRecord.of(run, config.current.stream_folder)
    for view in project.views:
        places = (*run.positions[view.stream.name], *run.positions[project.request.name])
        for shard in range(config.shards):
            if upgrade is None:
                frontier_us = evidence.handoff_us[view.name]
                key = OperatorKey(view.name, view.hash, shard, config.shards)
                mark = first_mark(key, places, frontier_us)
            else:
                frontier_us = upgrade.frontiers[view.name][shard]
                mark = bytes.fromhex(upgrade.marks[view.name][shard])
            at = tuple(places)
            found[view.name, shard] = Reached(run.polls, frontier_us, at, mark, at)
    return found


def segment_before(current: Current, run: StreamRun) -> int:
    """Return the number of the segment before the first one of a stream.

    Args:
        current: The folders of the stream.
        run: The record of the stream.
    """
    upgrade = UpgradeRecord.of(run, current.stream_folder)
    return 0 if upgrade is None else upgrade.segment


class StreamEnds:
    """Where the polls of a stream end.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.
    """

    def __init__(self, config: Configuration, run: StreamRun) -> None:
        self._config, self._run = config, run
        self._live: LiveLog | None = None
        if config.is_live:
            self._live = LiveLog(config.current.folder / LIVE, config.project)
            received = self._live.cuts().received_us
            self._before = int(np.searchsorted(received, run.as_of_us, "left"))

    def of(self, first: int, last: int) -> PollEnds | None:
        """Return where polls end; None of a stream that replays files.

        Args:
            first: The number of the first poll.
            last: The number of the last one.

        Raises:
            StateMismatch: The live log has not all of them.
        """
        if self._live is None:
            return None
        log, project = stream_log(self._config.current, self._config.project), self._config.project
        before = self._before - self._run.polls
        names = [*(stream.name for stream in project.streams), project.request.name]
        return poll_ends(
            project,
            self._live.cuts_between(before + first - 1, before + last),
            self._live.topics(),
            {name: log.lengths(name) for name in names},
            first=first,
            is_exact=self._run.mode == "exact",
        )

    def up_to_us(self, poll: int, frontier_us: int) -> int:
        """Return the instant before which all rows were received that polls up to one have.

        Args:
            poll: The poll.
            frontier_us: The least frontier after it, which says it for a stream that replays files.
        """
        if self._live is None:
            end_us = self._run.until_us or self._config.splits.stream_until_us
            return min(frontier_us, end_us)
        if poll == self._run.polls:
            return self._run.as_of_us
        return self._live.received_us(self._before + poll - self._run.polls) + 1
