"""Forgetting an entity of live streams: in polls, in the archive, in rejected records."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.support.memory_topics import NAMES, TopicProject
from tests.support.searched import where_found
from tests.support.stream_outputs import rows_in
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.archive.archive import archive_live_rows
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.forget.places import ForgottenPlaces
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.ingest.mended_live import MendedFiles, read_mended, write_mended
from tidemill.pipelines.io.live.mended import MendedMessage
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.proof_record import ProofRecord
from tidemill.pipelines.status.collect import collect
from tidemill.pipelines.verify.compare_archive import compare_archive
from tidemill.pipelines.verify.findings import Findings
from tidemill.pipelines.verify.follow.follow import FollowOptions, follow
from tidemill.pipelines.verify.verify import verify

CARD: Final = "kärtchen-4711"
"""A key that nothing else contains, and that JSON may write in two ways."""


class Shop(TopicProject):
    """A shop with a card of a name of its own."""

    def _some(self, at_us: int) -> list[tuple[str, dict[str, Any]]]:
        found = super()._some(at_us)
        for _, row in found:
            if row.get("card") == "c-1":
                row["card"] = CARD
        return found

    def send_poison(self) -> None:
        """Send messages of the card that cannot be used: wrong, broken, and of no text."""
        row = {"payment": "p-x", "at": "never", "card": CARD, "amount": 1.0}
        told = json.dumps(row).encode()
        values = (
            told,
            json.dumps(row, ensure_ascii=False).encode()[:-1],
            b"\xff\x0d" + told,
            b"\xff",
        )
        for value in values:
            self.topics.topics["payments"][0].append((self.now_us, value))


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def shop(folder: Path, monkeypatch: pytest.MonkeyPatch, now_us: int | None = None) -> Shop:
    """Return a shop whose files end an hour before now, and are built."""
    project = Shop.of_now(
        folder / "shop", monkeypatch, ago_us=HOUR, now_us=now_us, poll_rows=50,
        archive=Archive(folder / "archive"),
    )  # fmt: skip
    backfill(project.config(), QuietProgress())
    return project


def proven(project: Shop) -> dict[str, Any]:
    found = verify(project.config(), QuietProgress(), sample=50)
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def test_a_stream_goes_on_without_a_forgotten_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shop(tmp_path, monkeypatch)
    project.send(project.until_us, steps=60, every_us=30 * SECOND)
    project.stream(monkeypatch)
    root = project.config().root
    assert where_found(root, CARD)
    figures = forget(project.config(), "card", CARD, QuietProgress())
    assert all(count or name in _NONE for name, count in figures["removed"].items())
    assert where_found(tmp_path, CARD) == ["shop/checks.csv", "shop/payments.csv"]
    proven(project)
    # The card comes again, as one that nobody has seen, and the stream goes on exactly.
    project.send(project.until_us + HOUR, steps=20, every_us=30 * SECOND)
    project.stream(monkeypatch, resume=True)
    assert where_found(root, CARD)
    found = proven(project)
    assert found["forgotten_rows"] == figures["removed"]["rows of logs"] - _twice(project)
    forget(project.config(), "card", CARD, QuietProgress())
    assert where_found(root, CARD) == []
    proven(project)


def test_what_follows_a_stream_in_eager_mode_goes_on_from_where_that_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shop(tmp_path, monkeypatch)
    project.send(project.until_us, steps=40, every_us=30 * SECOND)
    project.stream(monkeypatch, mode="eager")
    answered = ids_of(project)
    figures = forget(project.config(), "card", CARD, QuietProgress())
    said = next(one for one in figures["remains"] if "eager mode" in one)
    with pytest.raises(StateMismatch, match=r"an entity was forgotten \(record 00001\)") as error:
        project.stream(monkeypatch, resume=True)
    assert len(str(error.value)) < 400
    (until,) = {
        re.findall(r"evaluate_until to (\S+Z),", text)[0] for text in (said, str(error.value))
    }
    standing = collect(project.config(), lambda *_: {})
    assert "an entity was forgotten" in standing.stream.said
    project.until_us = int(np.datetime64(until.removesuffix("Z"), "us").astype(np.int64))
    backfill(project.config(), QuietProgress())
    project.send(project.until_us + MINUTE, steps=20, every_us=30 * SECOND)
    project.stream(monkeypatch, mode="eager")
    assert ids_of(project)
    assert not {*ids_of(project)} & {*answered}
    forget(project.config(), "card", CARD, QuietProgress())
    assert where_found(project.config().root, CARD) == []
    proven(project)


def ids_of(project: Shop) -> list[str]:
    return [row["request_id"] for row in rows_in(project.current.stream_folder / "predictions")]


def followed(project: Shop) -> int:
    """Prove the stream as `verify --follow` does; return how many values it has compared."""
    options = FollowOptions(once=True)
    (*_, last) = follow(project.config(), options, threading.Event())
    record = last.record or ProofRecord.read(project.config().root)
    assert record is not None
    assert record.mismatches == 0, record.differences
    assert last.behind == 0
    return record.segment


def test_a_stream_that_was_killed_goes_on_without_a_forgotten_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shop(tmp_path, monkeypatch)
    project.archive, project.joiners = None, 2
    project.send(project.until_us, steps=40, every_us=30 * SECOND)

    def kill() -> None:
        """Keep what a kill would leave now: polls that no savepoint has sealed."""
        shutil.copytree(project.folder, tmp_path / "killed")

    project.stream(monkeypatch, meanwhile=kill)
    project.folder = tmp_path / "killed"
    config = project.config()
    logged, sealed = project.live.polls.last(), project.live.sealed()
    assert logged is not None
    assert logged.number > sealed.number
    figures = forget(config, "card", CARD, QuietProgress())
    assert figures["removed"]["rows of logs"] > 10
    assert where_found(config.root, CARD) == []
    proven(project)
    project.send(project.until_us + HOUR, steps=10, every_us=30 * SECOND)
    project.stream(monkeypatch, resume=True)
    assert project.live.sealed().number > logged.number
    proven(project)
    assert followed(project) > 1
    assert forget(config, "card", "c-2", QuietProgress())["removed"][_NONE[2]] == 1
    assert followed(project) > 1


_NONE: Final = (
    "rejected records", "texts of the summary and the report", "records of proofs beside streams",
)  # fmt: skip


def _twice(project: Shop) -> int:
    """Count the forgotten rows that a build and the live log both have: none before a backfill."""
    assert project.config().current.build == 1
    return 0


def test_polls_rejected_records_and_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shop(tmp_path, monkeypatch, 1_700_092_800 * SECOND)
    for hours in (0.1, 2, 26):
        project.now_us = project.until_us + round(hours * HOUR)
        project.send(project.now_us, steps=12)
        project.send_poison()
        project.read(steps=2)
        archive_live_rows(project.config(), project.current)
    project.send(project.now_us, steps=12)
    project.send_poison()
    project.read(steps=2, seals=False)
    config = project.config()
    mended = MendedMessage("0" * 16, "payments", "payments/0@1", CARD.encode(), "x:1", 1, True)
    write_mended(config.root, [mended])
    places = [name.split("/")[3] for name in where_found(config.root, CARD) if "/live/" in name]
    assert {"polls", "rejected", "rows"} <= set(places)
    sealed, before = project.live.sealed(), _places(project)
    figures = forget(config, "card", CARD, QuietProgress())
    # Three of each four that could not be used, a late payment, and the mended one.
    assert figures["removed"]["rejected records"] == 4 * 3 + 1 + 1
    assert figures["removed"]["archive"] > 0
    assert any("rejected records have bytes that are no text" in one for one in figures["remains"])
    assert where_found(config.root, CARD) == where_found(tmp_path / "archive", CARD) == []
    assert project.live.sealed() == sealed
    gone = ForgottenPlaces.read(config.root, project.current.generation, "checks")
    poison = [Place(("rejected", "validate", "payments", 1, 0), at) for at in range(200)]
    assert sum(map(gone.has, poison)) >= 12
    check_elsewhere(project, tmp_path, figures["removed"]["archive"])
    findings = Findings()
    compared = compare_archive(config, QuietProgress(), findings)
    assert (findings.count, compared["archive_removed_rows"]) == (0, 0)
    # What was not sealed is sealed as it would have been; the reader and the archive go on.
    project.send(project.now_us, steps=3)
    project.read(steps=1)
    assert _places(project)[: len(before)] == before
    archive_live_rows(config, project.current)
    assert compare_archive(config, QuietProgress(), findings)["archive_behind"] == 0
    assert findings.count == 0
    assert list(read_mended(config.root)) == []
    assert MendedFiles(config.root, project.live, ["payments"], print).take(9) == []


def check_elsewhere(project: Shop, folder: Path, forgotten: int) -> None:
    """Check that another project that reads the archive drops what was forgotten of it."""
    sources = {
        name: Source(
            name, (str(folder / "archive" / name / "**" / "*.parquet"),), received="sent_at"
        )
        for name in NAMES
    }
    other = replace(project.config(), root=folder / "other", sources=sources, archive=None)
    counts = backfill(other, QuietProgress())["sources"].values()
    assert sum(row["dropped"] for row in counts) == forgotten
    assert sum(row["rejected"] for row in counts) == 0 < sum(row["kept"] for row in counts)


def _places(project: Shop) -> list[tuple[int, int]]:
    """Return position and receipt of every sealed row of the first partition of payments."""
    log = Log(project.current.build_folder, project.live.folder)
    table = log.read("payments", 1, ["_position", "_received"])
    return [(row["_position"], row["_received"]) for row in table.to_pylist()]
