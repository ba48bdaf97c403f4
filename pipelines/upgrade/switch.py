"""The folder of the stream that goes on, built beside that of the stream before.

It holds a savepoint, from which `tidemill stream --resume` goes on as from any other. The record
``CURRENT`` then names it, in one step: a process that dies before has changed nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tidemill.features.contract import TIME_MAX
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import (
    Handoff,
    StreamRun,
    columns_of,
    request_hash,
)
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.recovery.store_fills import cuts_of
from tidemill.pipelines.recovery.stream_beginning import ask_again, empty_joiners
from tidemill.pipelines.recovery.upgrade_record import UpgradeRecord
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.joiner_upgrade import (
    has_pending,
    read_held,
    releases_named,
    upgraded_joiners,
)
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.state_files import file_hashes, savepoint_folder, write_handoff
from tidemill.pipelines.stream.state_upgrade import take_over_state
from tidemill.pipelines.upgrade.plan import UpgradePlan
from tidemill.pipelines.upgrade.rebuild import Rebuild, least_frontier
from tidemill.serving.files.atomic_write import wait_for_disk
from tidemill.serving.generations.current import Current, changing, read_current, write_current

_UNFINISHED: Final = "upgrading"


def remove_left(current: Current) -> None:
    """Remove what an upgrade has left that was killed before its stream was named.

    Args:
        current: The folders of the stream that ``CURRENT`` names.
    """
    for folder in current.folder.glob("stream-??????"):
        number = int(folder.name.rpartition("-")[2])
        if number > current.stream and (folder / paths.UPGRADE).exists():
            shutil.rmtree(folder)


def floor_of(config: Configuration, run: StreamRun, folder: Path, savepoint: Handoff) -> int:
    """Return the instant beyond which no state that is made from the log may go.

    Requests that wait are answered as of their time by views that are made anew, too.

    Args:
        config: The configuration.
        run: The record of the stream.
        folder: The savepoint at which it has stopped.
        savepoint: Its record.
    """
    held = read_held(folder, config.project.name, run.joiners)
    return least_frontier(savepoint) if has_pending(held) else TIME_MAX


def write_stream(
    config: Configuration,
    plan: UpgradePlan,
    rebuild: Rebuild,
    folder: Path,
    savepoint: Handoff,
    floor_us: int,
) -> Path:
    """Write the folder of the stream that goes on; nobody reads it yet.

    Args:
        config: The configuration of the new version, with the folders of the stream before.
        plan: What is done.
        rebuild: The views that were made anew, as of the savepoint.
        folder: The savepoint at which the stream before has stopped.
        savepoint: Its record.
        floor_us: As for `Rebuild.finish`.

    Returns:
        The folder.
    """
    current, project = config.current, config.project
    target = current.folder / _UNFINISHED
    shutil.rmtree(target, ignore_errors=True)
    states = savepoint_folder(target, savepoint.segment)
    states.mkdir(parents=True)
    for name in plan.kept:
        for shard in range(config.shards):
            key = OperatorKey(name, project.view(name).hash, shard, config.shards)
            take_over_state(folder, states, key)
    frontiers, marks = _reached(config, plan, rebuild, savepoint)
    joiners = upgraded_joiners(
        read_held(folder, project.name, plan.run.joiners),
        empty_joiners(config, config.stream.joiners, apart=plan.run.apart),
        plan.carried,
        savepoint.polls,
        frontiers,
    )
    ask_again(config, joiners, rebuild.operators.values())
    for operator in rebuild.operators.values():
        write_handoff(states, operator)
    carried = target / paths.CARRIED
    carried.mkdir()
    joiners.write(carried)
    for path in carried.glob("*.state"):
        os.link(path, states / path.name)
    named = releases_named(joiners)
    named |= {(view, shard, number - 1) for view, shard, number in named}
    upgrade = UpgradeRecord(
        segment=savepoint.segment,
        states=savepoint.id,
        at_us=time.time_ns() // 1_000,
        carried=list(plan.carried),
        floor_us=floor_us,
        marks=marks,
        frontiers=frontiers,
        releases=_releases(current.stream_folder, named),
        run=plan.run,
        before=UpgradeRecord.of(plan.run, current.stream_folder),
    )
    run = _run(config, plan, rebuild, savepoint)
    handoff = Handoff(
        kind="stop",
        as_of_us=savepoint.as_of_us,
        positions=run.positions,
        views={view.name: view.hash for view in project.views},
        shards=config.shards,
        segment=savepoint.segment,
        frontiers=frontiers,
        polls=savepoint.polls,
        marks=marks,
        began=run.began,
        mode=run.mode,
        files=file_hashes(states),
        generation=savepoint.generation,
        digests=run.digests,
    )
    handoff.write(states)
    Savepoint.of(handoff).write(target)
    upgrade.write(target)
    cuts = current.stream_folder / paths.CUTS
    if cuts.exists():
        shutil.copy2(cuts, target / paths.CUTS)
    run.write(target)
    for path in (*target.rglob("*"), target):
        wait_for_disk(path)
    return target


def _reached(
    config: Configuration, plan: UpgradePlan, rebuild: Rebuild, savepoint: Handoff
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Return the frontier and the mark of each shard, by view."""
    frontiers: dict[str, list[int]] = {}
    marks: dict[str, list[str]] = {}
    for view in config.project.views:
        if view.name in plan.kept:
            frontiers[view.name] = list(savepoint.frontiers[view.name])
            marks[view.name] = list(savepoint.marks[view.name])
            continue
        of_view = [rebuild.operators[view.name, shard] for shard in range(config.shards)]
        frontiers[view.name] = [operator.state.frontier_us for operator in of_view]
        marks[view.name] = [operator.mark.hex() for operator in of_view]
    return frontiers, marks


def _run(
    config: Configuration, plan: UpgradePlan, rebuild: Rebuild, savepoint: Handoff
) -> StreamRun:
    project, run = config.project, plan.run
    wanted = {*(stream.name for stream in project.streams), project.request.name}
    # In their order: the polls of a replay depend on it.
    sources = [name for name in run.positions if name in wanted]
    kept = {name: cuts_of(project.view(name), run) for name in plan.kept}
    return replace(
        run,
        began=secrets.token_hex(8),
        as_of_us=savepoint.as_of_us,
        positions={name: list(savepoint.positions[name]) for name in sources},
        digests={name: savepoint.digests[name] for name in sources},
        views={view.name: view.hash for view in project.views},
        shards=config.shards,
        joiners=config.stream.joiners,
        scored=project.model is not None,
        request=request_hash(project.request),
        polls=savepoint.polls,
        upgraded_from=config.current.stream,
        fill_cuts={**kept, **rebuild.cuts},
        columns=columns_of(project),
        definitions=project.spec(),
        models=None,
    )


def _releases(stream: Path, named: set[tuple[str, int, int]]) -> Sequence[Mapping[str, Any]]:
    """Return releases of a stream, without what only its own proof needs."""
    fields = ("view", "shard", "number", "frontier_us", "positions")
    return [
        {name: entry[name] for name in fields}
        for entry in (read_releases(stream) if named else ())
        if (entry["view"], entry["shard"], entry["number"]) in named
    ]


def switch_to(current: Current, folder: Path) -> Current:
    """Give the folder its place, and let ``CURRENT`` name it.

    Args:
        current: The folders of the stream before.
        folder: The folder.

    Raises:
        StateMismatch: Another generation, or another stream, has begun meanwhile.
    """
    with changing(current.root):
        found = read_current(current.root)
        if (found.generation, found.stream) != (current.generation, current.stream):
            raise StateMismatch(
                f"{current.root}: another stream, or another generation, has begun meanwhile; "
                "nothing was upgraded: look at `tidemill upgrade --plan` again"
            )
        target = found.with_next_stream()
        folder.rename(target.stream_folder)
        write_current(target)
    return target
