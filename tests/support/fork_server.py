"""Processes that are forked from one which has imported what they need: importing takes seconds.

They begin without the threads, locks and connections of the process that starts them.
"""

from __future__ import annotations

import functools
import multiprocessing
from multiprocessing.context import ForkServerContext
from typing import Final

from tidemill.pipelines.commands.feast_import import leave_out_checks

# The server imports this module first.
leave_out_checks()

IMPORTED: Final = (
    "tests.support.fork_server",
    "feast.infra.registry.sql",
    "tests.support.killed_command",
    "tests.support.killed_stream",
    "tidemill.pipelines.commands.backfill",
    "tidemill.pipelines.commands.stream",
    "tidemill.pipelines.history.backfill",
    "tidemill.pipelines.stream_run.stream",
    "tidemill.serving.feast_plugins.online_store",
    "tests.serving.online.fencing_test",
    "tests.serving.online.race_test",
    "tests.serving.online.sqlite.database_test",
)
"""What the server imports. It has no threads then."""


@functools.cache
def processes() -> ForkServerContext:
    """Return what starts processes; there is one server for each process of pytest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context
