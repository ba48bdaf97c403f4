"""The polls of a stream, read again: of a replayed log, or of a live log."""

from __future__ import annotations

from typing import TypeAlias

from tidemill.features.contract import TIME_MAX
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.cuts import FileCutLog
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.live_polls import LivePolls
from tidemill.pipelines.io.replay import ReplayLog, ReplayOptions
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.operator_key import Mode

StreamPolls: TypeAlias = ReplayLog | LivePolls
"""Polls that can be read again, each with the number and the rows that it had."""


def stream_polls(
    config: Configuration, run: StreamRun, *, as_of_us: int, last_poll: int
) -> StreamPolls:
    """Return the polls of a stream that came after some states.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.
        as_of_us: The states contain all rows received before this instant.
        last_poll: The number of the last poll that they contain.
    """
    current = config.current
    if config.is_live:
        return LivePolls(
            config.project,
            stream_log(current, config.project),
            LiveLog(current.folder / LIVE, config.project),
            start_us=as_of_us,
            stop_us=TIME_MAX,
            polls=last_poll,
        )
    return ReplayLog(
        config.project,
        ReplayOptions(
            root=current.build_folder,
            start_us=as_of_us,
            stop_us=run.until_us or config.splits.stream_until_us,
            poll_rows=run.poll_rows,
            polls=last_poll,
            requests_first=Mode(run.mode) is Mode.EAGER,
            cuts=tuple(FileCutLog(current.stream_folder / paths.CUTS).recorded()),
            order=tuple(run.positions),
        ),
    )
