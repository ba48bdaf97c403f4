"""A source of a running stream gets a column, and one becomes wider: all rows are read together.

Producers of both versions send, in turn. Rows before have no value in the new column.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.exports import exported, table_rows
from tests.support.grown_shop import AFTER, BEFORE, GROWN, GrownShop, shop_of
from tests.support.memory_topics import PAYMENTS, instant
from tidemill import EventStream
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.archive.archive import archive
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.ingest.live_rows import find_live_rows
from tidemill.pipelines.ingest.replay_rejected import replay
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.upgrade.plan import Fate, plan_upgrade
from tidemill.pipelines.upgrade.upgrade import upgrade
from tidemill.pipelines.verify.lineage import lineage
from tidemill.pipelines.verify.verify import verify


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GrownShop:
    """A shop whose stream has stopped."""
    shop = GrownShop.of_now(
        tmp_path / "shop", monkeypatch, ago_us=HOUR, archive=Archive(tmp_path / "archive")
    )
    backfill(shop.config(), QuietProgress(), publish=True)
    shop.send(shop.until_us, steps=24, every_us=30 * SECOND)
    shop.stream(monkeypatch)
    return shop


def proven(shop: GrownShop) -> dict[str, Any]:
    found = verify(shop.config(), QuietProgress(), sample=20)
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def fates(shop: GrownShop) -> dict[str, str]:
    plan = plan_upgrade(shop.config())
    assert plan is not None
    return {step.what: step.fate.value for step in plan.steps}


def tips(rows: pa.Table | pa.RecordBatch) -> list[float | None]:
    found: list[float | None] = rows.column("tip").to_pylist()
    return found


def test_a_stream_goes_on_with_a_source_that_has_grown(
    shop: GrownShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "export"
    exported(shop.config(), to)
    before = find_live_rows(shop.current, shop.project)
    assert before is not None
    ends = before.lengths("payments")
    shop.project = AFTER
    with pytest.raises(StateMismatch, match="upgrade"):
        shop.stream(monkeypatch, resume=True)
    assert fates(shop) == {
        "view by_card": "kept",
        "view by_shop": "rebuilt",
        "view by_tip": "added",
        "source payments": "changed",
        "source refunds": "kept",
        "source checks": "kept",
        "request checks": "kept",
    }
    state = shop.current.stream_folder
    assert upgrade(shop.config(), QuietProgress())["upgraded"] == 1
    kept = kept_states(state, "by_card")
    assert kept
    assert kept_states(shop.current.stream_folder, "by_card") == kept
    proven(shop)
    shop.project = BEFORE  # nobody goes on with it by mistake
    with pytest.raises(
        StateMismatch, match="source 'payments': the stream was begun with other col"
    ):
        shop.stream(monkeypatch, resume=True)
    shop.project, shop.senders = AFTER, (1, 2)
    shop.send(shop.until_us + 20 * MINUTE, steps=40, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    assert proven(shop)["predictions"] > 10
    log = stream_log(shop.current, shop.project)
    for partition, end in enumerate(ends, start=1):
        rows = log.read("payments", partition)
        assert set(tips(rows.slice(0, end))) == {None}
        assert {0.5, 2.0, None} == set(tips(rows.slice(end)))
        shops = [one for one in rows.column("shop").to_pylist() if one is not None]
        assert {one % 1 for one in shops} == {0.0, 0.5}

    # Files of the archive of both versions are read together, and exported.
    archive(shop.config(), QuietProgress())
    files = sorted((tmp_path / "archive" / "payments").glob("*/*.parquet"))
    names = {tuple(pq.read_schema(path).names) for path in files}
    assert {"tip" in one for one in names} == {False, True} or len(files) == 2
    exported(shop.config(), to)
    assert set(tips(table_rows(to / "payments"))) == {None, 0.5, 2.0}

    # The next build has all columns, and belongs to the same generation.
    generation = shop.current.generation
    shop.until_us += 10 * MINUTE
    backfill(shop.config(), QuietProgress())
    assert shop.current.generation == generation
    assert proven(shop)["predictions"] > 10

    # An entity is forgotten in files of both versions: the build before has the columns of then.
    figures = forget(shop.config(), "card", "c-1", QuietProgress())
    assert figures["removed"]["rows of logs"] > 5
    proven(shop)
    shop.send(shop.until_us + 50 * MINUTE, steps=5, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    proven(shop)
    build = shop.current.build_folder.relative_to(shop.config().root)
    assert "CHANGED" not in str(lineage(shop.config().root, str(build)))


def test_records_that_one_version_rejected_are_mended_with_the_columns_of_another(
    shop: GrownShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a shop is no int64 and is a float64 later; no tip is a text, then nor later."""
    at_us = shop.until_us + 15 * MINUTE
    later_us = at_us + 10 * MINUTE

    def row(name: str, time_us: int, **values: Any) -> dict[str, Any]:
        found = {"payment": name, "at": instant(time_us), "card": "c-1", "amount": 1.0}
        return {**found, "shop": 1, "online": True, **values}

    def send(*rows: dict[str, Any]) -> None:
        for one in rows:
            sent_us = shop.until_us + HOUR
            shop.topics.topics["payments"][0].append((sent_us, json.dumps(one).encode()))

    send(row("half", at_us, shop=1.5), row("wrong", at_us, amount="?"))
    shop.stream(monkeypatch, resume=True)
    shop.project = AFTER
    upgrade(shop.config(), QuietProgress())
    send(row("tipped", later_us, tip="much"), row("bare", later_us, amount="?", tip=0.5))
    shop.stream(monkeypatch, resume=True)
    replay(shop.config(), QuietProgress(), None)
    lines = {}
    (path,) = Path(shop.config().root).rglob("*.jsonl")
    for text in path.read_text().splitlines():
        line = json.loads(text)
        lines[json.loads(line["payload"])["payment"]] = line
    assert lines.keys() == {"half", "wrong", "tipped", "bare"}
    mended = {
        "wrong": row("wrong", at_us, tip=7.0, till="till 9"),  # by the columns of now
        "tipped": row("tipped", later_us, tip=2.0),
        "bare": row("bare", later_us),  # as the version before has sent it
    }
    for name, of in mended.items():
        lines[name]["payload"] = json.dumps(of)
    file = shop.folder / "mended.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    counts = replay(shop.config(), QuietProgress(), file)
    assert counts["payments (topic)"]["stored"] == 4, counts
    shop.stream(monkeypatch, resume=True, meanwhile=lambda: wait_for_mended(shop))
    shop.send(later_us + MINUTE, steps=10, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    proven(shop)
    log = stream_log(shop.current, shop.project)
    found = {
        one["payment"]: one
        for partition in range(1, log.partitions("payments"))
        for one in log.read("payments", partition).to_pylist()
    }
    assert [found[name]["shop"] for name in ("half", "wrong")] == [1.5, 1.0]
    assert [found[name]["tip"] for name in lines] == [None, 7.0, 2.0, None]
    assert found["wrong"]["till"] == "till 9"

    # What is exported once an entity was forgotten has nothing of it, in files of both versions.
    shop.until_us = shop.read_until()
    backfill(shop.config(), QuietProgress())
    figures = forget(shop.config(), "card", "c-1", QuietProgress())
    assert figures["removed"]["rows of logs"] > 5
    archive(shop.config(), QuietProgress())
    exported(shop.config(), tmp_path / "export")
    rows = table_rows(tmp_path / "export" / "payments").to_pylist()
    assert {one["card"] for one in rows} >= {"c-2", None}
    assert "c-1" not in {one["card"] for one in rows}
    assert {one["tip"] for one in rows} <= {None, 0.5, 2.0, 7.0}
    proven(shop)


def wait_for_mended(shop: GrownShop) -> None:
    deadline = time.monotonic() + 120
    while not any(one.mended is not None for one in shop.live.polls.read(after=0)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kept_states(stream: Path, view: str) -> dict[str, bytes]:
    """Return the pieces of the states of a view at the last savepoint; heads have counters."""
    newest = max((stream / paths.SAVEPOINTS).iterdir())
    return {
        path.name: path.read_bytes()
        for path in newest.glob(f"{view}-*.state")
        if ".base-" in path.name or ".since-" in path.name
    }


def changed(**changes: Any) -> EventStream:
    return replace(PAYMENTS, **changes)


REFUSED = {
    "added, not optional": (
        changed(schema={**PAYMENTS.schema, "tip": "float64"}),
        r"source 'payments': column 'tip' is new, .*declare optional=\['tip'\]",
    ),
    "widened, not declared": (
        changed(schema={**PAYMENTS.schema, "shop": "float64"}),
        r"column 'shop' is int64 in its log and float64 now: declare widened=\{'shop': 'int64'\}",
    ),
    "narrowed": (
        changed(schema={**PAYMENTS.schema, "amount": "int64"}),
        r"column 'amount' is float64 in its log and int64 now, which does not hold every value",
    ),
    "removed": (
        changed(schema={n: d for n, d in PAYMENTS.schema.items() if n != "online"}),
        r"column 'online' is in its log and no longer declared; a log keeps its columns",
    ),
    "renamed": (
        changed(
            schema={n.replace("online", "web"): d for n, d in PAYMENTS.schema.items()},
            optional=["web"],
        ),
        r"'online' is in its log and no longer declared.*if 'web' is its new name, keep both",
    ),
    "optional afterwards": (
        changed(optional=["online"]),
        r"column 'online' is optional now, and its log began with it",
    ),
    "another order": (
        changed(schema=dict(sorted(PAYMENTS.schema.items()))),
        r"its columns are in another order than in its log",
    ),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrownShop]:
    """A shop whose stream has stopped, and which nobody changes."""
    with pytest.MonkeyPatch.context() as patch:
        shop = GrownShop.of_now(tmp_path_factory.mktemp("stopped") / "shop", patch, ago_us=HOUR)
        backfill(shop.config(), QuietProgress())
        shop.send(shop.until_us, steps=6, every_us=30 * SECOND)
        shop.stream(patch)
        yield shop


@pytest.mark.parametrize("case", REFUSED)
def test_other_changes_of_columns_are_refused_by_name(
    stopped: GrownShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    payments, said = REFUSED[case]
    shop = copy.copy(stopped)
    shop.folder = tmp_path / "shop"
    shutil.copytree(stopped.folder, shop.folder)
    shop.topics.install(monkeypatch)
    (by_card, _) = BEFORE.views
    shop.project = replace(BEFORE, views=[replace(by_card, stream=payments)])
    plan = plan_upgrade(shop.config())
    assert plan is not None
    assert Fate.REFUSED in {step.fate for step in plan.steps if step.what == "source payments"}
    with pytest.raises(StateMismatch, match=said):
        upgrade(shop.config(), QuietProgress())
    with pytest.raises(StateMismatch):
        shop.stream(monkeypatch, resume=True)
    with pytest.raises(StateMismatch, match="payments"):
        backfill(shop.config(), QuietProgress())


def test_an_integer_that_no_float_is_keeps_its_column_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = GrownShop.of_now(tmp_path / "shop", monkeypatch, ago_us=HOUR)
    backfill(shop.config(), QuietProgress())
    shop.numbers["payments"] = 2**53 + 1
    shop.send(shop.until_us, steps=30, every_us=30 * SECOND)
    shop.stream(monkeypatch)
    shop.project = AFTER
    with pytest.raises(StateMismatch, match=r"'shop' has the value 90071992547\d+ in partition"):
        upgrade(shop.config(), QuietProgress())


def test_versions_of_a_source_follow_each_other_and_builds_of_each_go_on(
    shop: GrownShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column first, another one and a wider type later; then a downgrade of the views."""
    first = replace(PAYMENTS, schema={**PAYMENTS.schema, "tip": "int64"}, optional=["tip"])
    shop.project = shop_of(first)
    assert fates(shop)["view by_shop"] == "kept"
    upgrade(shop.config(), QuietProgress())
    shop.send(shop.until_us + 20 * MINUTE, steps=10, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    wider = replace(GROWN, widened={"shop": "int64", "tip": "int64"})
    shop.project, shop.senders = shop_of(wider, with_tips=True), (1, 2)
    upgrade(shop.config(), QuietProgress())
    shop.send(shop.until_us + 40 * MINUTE, steps=20, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    proven(shop)
    shop.project = shop_of(wider)  # back to the views of before; columns stay
    assert fates(shop)["view by_tip"] == "dropped"
    upgrade(shop.config(), QuietProgress())
    shop.send(shop.until_us + 60 * MINUTE, steps=5, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    proven(shop)
    shop.project = BEFORE
    assert fates(shop)["source payments"] == "refused"
    # A stream that begins anew in the same generation reads files of all versions, too.
    shop.project = shop_of(wider, with_tips=True)
    backfill(shop.config(), QuietProgress(), publish=True)
    shop.stream(monkeypatch)
    proven(shop)
