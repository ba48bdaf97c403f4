"""Upgrade: a stream goes on with another version of its project.

The order: states of changed views are made from history while the stream runs; the stream stops at
a savepoint; the states are brought up to it; the folder of the stream that goes on is written;
``CURRENT`` names it. A process that dies before the last step has changed nothing that the version
before needs, and saying the command again begins anew; one that dies behind it has the new version
whole.
"""

from __future__ import annotations

import time
from typing import Any, Final

from tidemill.features.errors import StateMismatch
from tidemill.features.kernel.compilation import compile_kernel
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.delivery.record import DeliveryRecord
from tidemill.pipelines.forget.record import check_goes_on
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.recovery.handoff import (
    Handoff,
    StreamRun,
    changed_files,
    check_log,
    last_states,
)
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.republish import keeps_frontiers, switch_if_caught_up
from tidemill.pipelines.recovery.savepoints import check_savepoint_is_there
from tidemill.pipelines.recovery.store_fills import fills_of_run
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.upgrade.plan import UpgradePlan, plan_upgrade
from tidemill.pipelines.upgrade.rebuild import Rebuild
from tidemill.pipelines.upgrade.running import stopped_stream
from tidemill.pipelines.upgrade.switch import floor_of, remove_left, switch_to, write_stream
from tidemill.serving.files.locks import lock
from tidemill.serving.files.segment_names import segment_of
from tidemill.serving.online.backends import open_database
from tidemill.serving.registry.registration import open_store

UPGRADE_LOCK: Final = "upgrade.lock"


def upgrade(config: Configuration, progress: Progress, *, wait: bool = False) -> dict[str, Any]:
    """Let the stream of a root go on with the project as it is now.

    The stream may run meanwhile; it is stopped when the states of all changed views are there.
    Afterwards `tidemill stream --resume` goes on.

    Args:
        config: The configuration of the new version.
        progress: Where progress is shown.
        wait: Whether to wait for another upgrade of the root; else it is an error.

    Returns:
        Figures; ``views`` says what became of each.

    Raises:
        StateMismatch: There is no stream to upgrade, or it cannot be upgraded to this version.
        BundleError: The project has a model, and its bundle is for other definitions.
        Locked: The stream cannot be stopped from here, or another process upgrades the root.
        StoreError: The online store refuses.
    """
    config = config.pin()
    current = config.current
    with lock(current.folder / UPGRADE_LOCK, "upgrade the stream", wait=wait):
        plan = _planned(config)
        if not plan.changes:
            show_fills(config, progress)  # one that was killed may not have come to it
            return {"upgraded": 0, "views": dict.fromkeys(plan.kept, "kept")}
        plan.check()
        check_goes_on(current, config.project)
        remove_left(current)
        compile_kernel(progress)
        began = time.perf_counter()
        base = last_states(current)[1]
        rebuild = Rebuild(config, plan.run, plan.rebuilt, progress)
        if plan.rebuilt:
            rebuild.begin(base)
        open_store(config.project, config.places, clock="replay")
        rebuild.begin_fills(base)
        built_s = time.perf_counter() - began
        with stopped_stream(current, progress.say):
            stopped = time.perf_counter()
            plan = _same_plan(config.pin(), plan)
            folder, savepoint = _stopped_at(config, plan.run)
            floor_us = floor_of(config, plan.run, folder, savepoint)
            if plan.rebuilt:
                rebuild.finish(savepoint, floor_us)
            unfinished = write_stream(config, plan, rebuild, folder, savepoint, floor_us)
            target = switch_to(current, unfinished)
            show_fills(config.pin(), progress)
            stopped_s = time.perf_counter() - stopped
    return {
        "upgraded": 1,
        "views": {
            step.what.removeprefix("view "): step.fate.value
            for step in plan.steps
            if step.what.startswith("view ")
        },
        "stream": target.stream,
        "rebuilt_rows": rebuild.rows,
        "rebuild_s": round(built_s, 3),
        "stopped_s": round(stopped_s, 3),
    }


def show_fills(config: Configuration, progress: Progress) -> None:
    """Let readers see the rows of views that were made anew, unless they see a later instant.

    Then the stream switches them, when it has caught up with what they see.

    Args:
        config: The configuration, with the folders of the stream that goes on.
        progress: Where it is said what readers wait for.
    """
    run = StreamRun.read(config.current.stream_folder)
    if run is None or not keeps_frontiers(config.online_store):
        return
    database = open_database(config.online_store)
    try:
        found, _ = fills_of_run(config, database, run)
    finally:
        database.close()
    for fill in found.unread:
        if fill.writer is not None:
            switch_if_caught_up(config, RunFills({fill.space.view: fill}), progress)


def _planned(config: Configuration) -> UpgradePlan:
    plan = plan_upgrade(config)
    if plan is None:
        raise StateMismatch(
            f"there is no stream in {config.root} to upgrade: run `tidemill stream`"
        )
    return plan


def _same_plan(config: Configuration, plan: UpgradePlan) -> UpgradePlan:
    """Check that the stream is the one for which states were made."""
    found = StreamRun.read(config.current.stream_folder)
    if found != plan.run:
        raise StateMismatch(
            f"another stream has begun in {config.root} meanwhile, and nothing was upgraded: run "
            "`tidemill upgrade` again"
        )
    return plan


def _stopped_at(config: Configuration, run: StreamRun) -> tuple[Any, Handoff]:
    """Return the savepoint at which the stream has stopped; remove what came after it.

    Raises:
        StateMismatch: There is none, it is damaged, or what came after it cannot be repeated.
    """
    current = config.current
    folder, savepoint = last_states(current)
    check_savepoint_is_there(current.stream_folder, run, folder, savepoint)
    if savepoint.kind != "stop":
        raise StateMismatch(
            f"the stream in {current.root} has kept no savepoint yet: run it, with the version "
            "that began it, until it has, or start over with `tidemill stream`"
        )
    for path, what in changed_files(folder, savepoint):
        raise StateMismatch(f"{path} {what}; restore the folder from a copy")
    check_log(folder, savepoint, stream_log(current, config.project), savepoint.positions)
    if _was_killed(config) and DeliveryRecord.read(current.stream_folder) is not None:
        raise StateMismatch(
            f"the stream in {current.root} was killed, and has written to topics what no savepoint "
            "holds: resume it with the version that ran, stop it with SIGTERM, and run `tidemill "
            "upgrade` again"
        )
    for name in paths.STREAM_OUTPUTS:
        for path in (current.stream_folder / name).glob("**/*"):
            if (segment_of(path.name) or 0) > savepoint.segment and path.is_file():
                path.unlink()
    return folder, savepoint


def _was_killed(config: Configuration) -> bool:
    """Tell whether polls were written down that the savepoint does not hold."""
    live = LiveLog(config.current.folder / LIVE, config.project)
    if not (config.is_live and live.exists):
        return False
    last, sealed = live.polls.last(), live.sealed().number
    return last is not None and last.number > sealed
