"""`tidemill upgrade` of a live stream: views keep their states, or are made from history."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.folders import stream_of
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.redis_server import running
from tests.support.topics import committed
from tidemill.features.contract import ReadStatus
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.upgrade import switch, upgrade
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.reader import OnlineReader

SECOND_VIEW = """
by_amount = FeatureView(
    "by_amount", entity=card, stream=payments, hop="1m",
    features={
        "largest_1h": max(col("amount"), over="1h"), "first_1h": first(col("amount"), over="1h")
    },
)
"""


def edit(project: LiveProject, *changes: tuple[str, str], name: str = "project.py") -> None:
    """Edit a file of the project."""
    path = project.folder / name
    text = path.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)


def add_view(project: LiveProject) -> None:
    """Add a view before the others."""
    edit(
        project,
        ("col, count, last", "col, count, first, last, max"),
        ("checks = Request(", f"{SECOND_VIEW}\nchecks = Request("),
        ("views=[by_card]", "views=[by_amount, by_card]"),
    )


def change_view(project: LiveProject) -> None:
    """Change a feature of a view."""
    edit(project, ('count(over="10m")', 'count(over="20m")'))


def has_savepoint(project: LiveProject) -> bool:
    found = Savepoint.read(stream_of(project.folder / "run"))
    return found is not None


def wait(happened: Callable[[], bool], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def reading(project: LiveProject, view: str) -> Iterator[list[ReadStatus]]:
    """Read a view of all cards, again and again, while the block runs; gather the statuses."""
    config = load(project.folder / "tidemill.yaml")
    reader = OnlineReader(open_database(config.online_store), config.project, clock="wall")
    ended, found = threading.Event(), []

    def read() -> None:
        while not ended.wait(0.05):
            for card in range(20):
                found.append(reader.read_one({view: f"c-{card}"})[view].status)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def test_a_stream_that_runs_takes_views_that_are_added_and_changed(
    tmp_path: Path, broker: TestBroker
) -> None:
    project = LiveProject(tmp_path / "project", broker, savepoint_every="2s", sinks=True)
    project.run("backfill", "--publish")
    project.produce(60, 20)
    with project.streaming() as process:
        project.wait_for(10, process)
        wait(lambda: has_savepoint(project))
        project.produce(20, 10)
        with reading(project, "by_card") as statuses:
            add_view(project)
            plan = project.run("upgrade", "--plan")
            assert fates(plan) == {"by_amount": "added", "by_card": "kept"}
            assert process.poll() is None
            project.run("upgrade")
            assert process.wait(timeout=60) == 0
            project.produce(40, 10)
            with project.streaming("--resume") as process:
                # Among the first ten may be requests that waited for the version before.
                wait(lambda: "checks-39" in {row["request_id"] for row in project.predictions()})
                project.drain(process)
        assert len(statuses) > 100
        assert set(statuses) <= {ReadStatus.PRESENT, ReadStatus.NOT_FOUND}
    assert project.verify()
    project.run("verify", "--follow", "--once")
    standing = json.loads(project.run("status", "--json"))
    assert standing["proof"]["mismatches"] == 0
    assert standing["proof"]["values"] > 0
    answers = [json.loads(message.value) for message in committed(project, "predictions")]
    assert sorted(one["request_id"] for one in answers) == [f"checks-{n}" for n in answers_of(40)]
    change_view(project)
    of_stream, _, _ = project.run("apply", "--plan").partition("\nproject ")
    assert fates(of_stream)["by_card"] == "rebuilt"
    assert fates(project.run("upgrade")) == {"by_amount": "kept", "by_card": "rebuilt"}
    project.produce(20, 10)
    with project.streaming("--resume", "--engine", "prism") as process:  # and on another engine
        project.wait_for(5, process)
        project.drain(process)
    assert project.verify()
    assert "nothing" in project.run("upgrade", "--plan")


def fates(plan: str) -> dict[str, str]:
    """Return what a printed plan says of each view."""
    return dict(re.findall(r"^. +view (\w+) +(\w+) ", plan, re.MULTILINE))


def answers_of(count: int) -> list[int]:
    """Return the numbers of requests in the order of their ids as texts."""
    return sorted(range(count), key=str)


@contextmanager
def store_of(project: LiveProject, store: str) -> Iterator[None]:
    """Let features go to a store while the block runs."""
    if store == "sqlite":
        yield
        return
    with running(project.folder.parent / "redis") as server:
        redis = f"{{type: redis, host: {server.place.host}, port: {server.port}}}"
        edit(project, ("{type: sqlite, path: online.db}", redis), name="tidemill.yaml")
        yield


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_killed_upgrade_leaves_one_of_the_versions_whole(
    tmp_path: Path, broker: TestBroker, store: str
) -> None:
    project = LiveProject(tmp_path / "project", broker, savepoint_every="2s")
    with store_of(project, store):
        kill_upgrades(project)


def kill_upgrades(project: LiveProject) -> None:
    project.run("backfill", "--publish")
    project.produce(40, 10)
    with project.streaming() as process:
        project.wait_for(5, process)
        project.drain(process)
    first_version = (project.folder / "project.py").read_text()
    add_view(project)
    change_view(project)
    second_version = (project.folder / "project.py").read_text()
    places = [
        (upgrade.Rebuild, "begin_fills"), (upgrade.Rebuild, "finish"), (upgrade, "write_stream"),
        (upgrade, "switch_to"), (switch, "write_current"),
    ]  # fmt: skip
    for of, name in places:
        killed_at(project, of, name)
        # The version before is whole.
        (project.folder / "project.py").write_text(first_version)
        assert project.verify()
        (project.folder / "project.py").write_text(second_version)
    (project.folder / "project.py").write_text(first_version)
    with project.streaming("--resume") as process:
        project.produce(20, 5)
        project.wait_for(12, process)
        project.drain(process)
    (project.folder / "project.py").write_text(second_version)
    killed_at(project, upgrade, "show_fills")
    assert "nothing" in project.run("upgrade")
    (project.folder / "project.py").write_text(first_version)
    with project.streaming("--resume") as process:
        assert process.wait(timeout=120) == 1
        assert "run the version of the project that the stream was begun with" in project.log()
    (project.folder / "project.py").write_text(second_version)
    with project.streaming("--resume") as process:
        project.produce(20, 5)
        project.wait_for(4, process)
        project.drain(process)
    assert project.verify()


GROWN = (
    ('"amount": "float64",', '"amount": "float64", "tip": "float64",'),
    ('transport=["sent_at"],', 'transport=["sent_at"], optional=["tip"],'),
)
GROWN_CHECKS = (
    ('"wanted": "float64",', '"wanted": "float64", "coupon": "float64", "shop": "string",'),
    (
        'request_time="asked_at",',
        """request_time="asked_at", optional=["coupon", "shop"],
    inputs={"discount": col("coupon").fill_null(0.0) * col("wanted")},""",
    ),
)
TIPS = """
by_tip = FeatureView(
    "by_tip", entity=card, stream=payments, hop="1m",
    features={
        "tips_1h": sum(col("tip"), over="1h"),
        "tipped_1h": count(over="1h", where=col("tip") > 1),
    },
)
"""


def test_a_stream_takes_over_from_another_in_one_command_on_redis(
    tmp_path: Path, broker: TestBroker
) -> None:
    """The new version declares columns that producers begin to send, also of the request."""
    project = LiveProject(tmp_path / "project", broker, savepoint_every="2s", sinks=True)
    first_version = (project.folder / "project.py").read_text()
    with store_of(project, "redis"):
        project.run("backfill", "--publish")
        project.produce(60, 20)
        with project.streaming() as process:
            project.wait_for(10, process)
            wait(lambda: has_savepoint(project))
            with reading(project, "by_card") as statuses:
                edit(
                    project,
                    *GROWN,
                    *GROWN_CHECKS,
                    ("checks = Request(", f"{TIPS}\nchecks = Request("),
                    ("views=[by_card]", "views=[by_card, by_tip]"),
                )
                plan = project.run("upgrade", "--plan")
                assert fates(plan) == {"by_card": "kept", "by_tip": "added"}
                assert re.search(r"source payments +changed .*'tip' \(float64\) is new", plan)
                assert re.search(r"source checks +changed .*'coupon' \(float64\) is new", plan)
                assert re.search(r"definitions +changed .*discount", plan)
                with project.streaming("--upgrade") as upgraded:
                    assert process.wait(timeout=120) == 0
                    project.produce(20, 20)
                    project.send_raw("payments", tipped(project))
                    project.send_raw("checks", with_coupons(project))
                    project.produce(10, 10)
                    asked = {f"checks-{n}" for n in range(50)} | {f"coupon-{n}" for n in range(5)}
                    wait(lambda: answers(project) == asked)
                    project.drain(upgraded)
            assert set(statuses) <= {ReadStatus.PRESENT, ReadStatus.NOT_FOUND}
        assert project.verify()
        rows = project.predictions()
        assert any(row["by_tip__tipped_1h"] for row in rows)
        discounts = {row["request_id"]: row["discount"] for row in rows}
        assert {id for id, discount in discounts.items() if discount} == {
            f"coupon-{n}" for n in range(5)
        }
        # The version before is refused by name, although it has lost no view that it knows.
        (project.folder / "project.py").write_text(first_version)
        with project.streaming("--upgrade") as process:
            assert process.wait(timeout=120) == 1
        assert "column 'tip' is in its log and no longer declared" in project.log()


def tipped(project: LiveProject) -> list[bytes]:
    rows = [project.row_of_now("payments", f"tipped-{n}") | {"tip": 2.5} for n in range(40)]
    return [json.dumps(row).encode() for row in rows]


def with_coupons(project: LiveProject) -> list[bytes]:
    rows = [
        project.row_of_now("checks", f"coupon-{n}") | {"wanted": 3.0, "coupon": 0.5, "shop": "s"}
        for n in range(5)
    ]
    return [json.dumps(row).encode() for row in rows]


def answers(project: LiveProject) -> set[str]:
    return {
        json.loads(message.value)["request_id"] for message in committed(project, "predictions")
    }


def killed_at(project: LiveProject, of: object, name: str) -> None:
    """Upgrade in a process that is killed when it calls a function."""
    from tidemill.pipelines.commands.cli import main

    child = os.fork()
    if not child:  # pragma: no cover - it is killed
        os.chdir(project.folder)
        setattr(of, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        main(["upgrade", "--quiet"])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
