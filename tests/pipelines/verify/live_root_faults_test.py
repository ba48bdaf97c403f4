"""Every file that only a live stream keeps, damaged or gone: named, or found as a mismatch.

`tests/pipelines/commands/faults_test.py` has the files that every stream keeps, as a stream of
topics keeps them, too.
"""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Final

import pytest

from tests.support.memory_topics import PROJECT, TopicProject
from tidemill.features.contract import MINUTE, SECOND
from tidemill.features.errors import TidemillError
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.handoff import request_hash
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.follow.follow import FollowOptions, follow
from tidemill.pipelines.verify.verify import verify

LIVE: Final = "generations/*/live"
VERIFY, FOLLOW, RESUME = "verify", "verify --follow --once", "stream --resume"
READ: Final = {
    "generations/*/build-*/topics.json": (VERIFY, RESUME),
    f"{LIVE}/topics.json": (VERIFY, FOLLOW, RESUME),
    f"{LIVE}/sealed.json": (VERIFY, FOLLOW, RESUME),
    f"{LIVE}/origin.json": (RESUME, RESUME, VERIFY),
    f"{LIVE}/cuts/*.arrow": (VERIFY, FOLLOW, RESUME),
    f"{LIVE}/rejected/*.arrow": (VERIFY,),
    f"{LIVE}/lost/*.arrow": (VERIFY, FOLLOW),
    f"{LIVE}/rows/payments/*.arrow": (VERIFY, FOLLOW, RESUME),
    f"{LIVE}/polls/*.polls": (RESUME,),
}
"""The files that only a live stream keeps, and the commands that use them."""
NOT_READ: Final = {
    f"{LIVE}/rows/*/*.arrow": "as those of payments",
    "generations/*/telemetry/**/*": "`status` does without it (tests/pipelines/status)",
}
OF_EVERY_STREAM: Final = (
    "CURRENT", "root-id.json", "registry.db*", "online.db*", "**/*.lock",
    "generations/*/build-*/build.json", "generations/*/build-*/*/**/*",
    "generations/*/stream-*/**/*",
)  # fmt: skip
"""They have their table in `tests/pipelines/commands/faults_test.py`."""


def flipped(content: bytes) -> bytes:
    """Change the last byte that is not padding."""
    place = len(content.rstrip(b"\0")) - 1
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGES: Final[dict[str, Callable[[bytes], bytes | None]]] = {
    "a flipped byte": flipped,
    "a flipped byte in the middle": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
    "gone": lambda _: None,
}
SOUND: Final = {
    ("polls", "a flipped byte in the middle"),  # of a poll that is sealed, and not read any more
}
"""Damages that change nothing."""


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TopicProject]:
    """A project whose stream has rejected records, and has gone on without lost messages."""
    with pytest.MonkeyPatch.context() as patch:
        project = TopicProject.of_now(
            tmp_path_factory.mktemp("shop"), patch, savepoint_every_us=MINUTE
        )
        backfill(project.config(), QuietProgress())
        now_us = time.time_ns() // 1_000
        project.send(now_us - MINUTE, steps=20, every_us=SECOND)
        for partition in project.topics.topics["payments"]:
            partition.insert(4, (now_us - MINUTE, b"no JSON"))
        project.topics.delete_before("payments", 1, 2)
        project.stream(patch, accept_lost=["payments/1@0-1"])
        shutil.copytree(project.folder / "run", project.folder / "kept")
        yield project


@pytest.fixture
def project(streamed: TopicProject, monkeypatch: pytest.MonkeyPatch) -> TopicProject:
    """The project as its stream has left it."""
    streamed.topics.install(monkeypatch)
    shutil.rmtree(streamed.folder / "run")
    shutil.copytree(streamed.folder / "kept", streamed.folder / "run")
    return streamed


def ended(command: str, project: TopicProject, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command; return its error, or what it has found; nothing if all is right."""
    config = project.config()
    try:
        match command:
            case "verify":
                found = verify(config, QuietProgress(), sample=0)
                return str(found["first_mismatches"]) if found["mismatches"] else ""
            case "stream --resume":
                project.stream(monkeypatch, resume=True)
                return ""
            case _:
                options = FollowOptions(once=True)
                shutil.rmtree(config.root / "proof", ignore_errors=True)
                step = list(follow(config, options, threading.Event()))[-1]
                assert step.record is not None
                found = step.record.differences if step.record.mismatches else ""
                return f"{step.record.stops}{found}{step.said}"
    except TidemillError as error:
        return str(error)


def test_nothing_below_a_live_root_is_forgotten(project: TopicProject) -> None:
    root = project.folder / "run"
    patterns = [*READ, *NOT_READ, *OF_EVERY_STREAM]
    known = {path for pattern in patterns for path in root.glob(pattern)}
    assert [path for path in root.glob("**/*") if path.is_file() and path not in known] == []
    for pattern in READ:
        assert list(root.glob(pattern)), pattern
    assert ended(VERIFY, project, pytest.MonkeyPatch()) == ""
    assert ended(FOLLOW, project, pytest.MonkeyPatch()) == ""


@pytest.mark.parametrize("pattern", READ)
def test_a_damaged_file_is_named_or_a_mismatch(
    pattern: str, project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = min((project.folder / "run").glob(pattern))
    whole = path.read_bytes()
    # Each damage meets one of the commands, since they take time.
    for (damage, change), command in zip(
        DAMAGES.items(), itertools.cycle(READ[pattern]), strict=False
    ):
        if {(path.name, damage), (path.parent.name, damage)} & SOUND:
            continue
        content = change(whole)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        said = ended(command, project, monkeypatch)
        assert said, (damage, command)
        if content is not None:  # what is gone may have the name of its folder only
            assert path.name.partition(".")[0] in said or path.parent.name in said, said
        path.write_bytes(whole)


@pytest.mark.parametrize("others", ["refunds/00001", "checks/00002"])
def test_live_rows_that_were_swapped_are_found(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    rows = project.current.folder / "live" / "rows"
    one, other = (rows / f"{name}-000000000000.arrow" for name in ("checks/00001", others))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    for command in (VERIFY, RESUME):
        assert ended(command, project, monkeypatch), command
    if "refunds" in others:
        assert "it was replaced by a file of another source" in ended(VERIFY, project, monkeypatch)


def test_a_stream_whose_record_is_gone_is_not_one_that_has_not_begun(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.current.stream_folder / "stream.json").unlink()
    for command in (VERIFY, FOLLOW, RESUME):
        assert "stream" in (said := ended(command, project, monkeypatch)), command
        assert "tidemill stream" in said


def test_an_older_record_of_what_is_sealed_is_found(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = project.live.sealed()
    earlier = {name: [max(at - 1, 0) for at in of] for name, of in sealed.positions.items()}
    project.live.write_sealed(replace(sealed, number=sealed.number - 1, positions=earlier))
    assert "sealed.json is an older copy" in ended(VERIFY, project, monkeypatch)


def test_an_online_store_that_is_gone_or_empty_is_said(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = project.folder / "run" / "online.db"
    with closing(sqlite3.connect(store)) as sqlite, sqlite:
        sqlite.execute("DELETE FROM tidemill_fills")
    said = ended(FOLLOW, project, monkeypatch)
    assert "it has nothing of the view: it was emptied, or is another one" in said
    assert "store" in ended(VERIFY, project, monkeypatch)
    for path in store.parent.glob("online.db*"):
        path.unlink()
    assert ended(FOLLOW, project, monkeypatch).startswith("not compared: there is no online store")
    said = ended(VERIFY, project, monkeypatch)
    assert "it was emptied, or is another one; `tidemill republish` fills it" in said


@pytest.mark.parametrize("change", [{"out_of_orderness": "20s"}, {"max_ahead": "2h"}])
def test_a_stream_is_not_resumed_with_another_definition_of_the_request(
    project: TopicProject, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    other = replace(PROJECT, request=replace(PROJECT.request, **change))
    config = project.config(project=other)
    monkeypatch.setattr(project, "config", lambda: config)
    said = ended(RESUME, project, monkeypatch)
    assert "request 'checks': the stream was begun with definition" in said
    assert "set it back" in said
    # What it has answered is proven by the definition that it was begun with.
    assert verify(config, QuietProgress(), sample=0)["mismatches"] == 0
    # What only a model is given may change.
    inputs = replace(PROJECT, request=replace(PROJECT.request, inputs={}))
    assert request_hash(inputs.request) == request_hash(PROJECT.request)
