"""A request of a running stream gets columns, and one becomes wider: what is made of it follows."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.exports import exported, table_rows
from tests.support.grown_shop import ASKED_AFTER, ASKED_BEFORE, BEFORE, DISCOUNT, AskedShop
from tests.support.memory_topics import instant
from tidemill import Entity, FeatureView, Request, count
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.archive.archive import archive
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.ingest.replay_rejected import replay
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.stream_beginning import carried_joiners
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.upgrade.plan import plan_upgrade
from tidemill.pipelines.upgrade.upgrade import upgrade
from tidemill.pipelines.verify.explain import explain
from tidemill.pipelines.verify.served import read_predictions
from tidemill.pipelines.verify.verify import verify

GROWN = replace(ASKED_AFTER, inputs={**ASKED_BEFORE.inputs, **DISCOUNT})
AFTER = replace(BEFORE, request=GROWN)
AHEAD = HOUR + 20 * MINUTE
"""After the end of the histories: ahead of now, so a request of then waits."""
UNREAD = replace(BEFORE, request=ASKED_AFTER)


@pytest.fixture(autouse=True)
def power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses its power."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def begun(folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> AskedShop:
    """Return a shop whose stream has stopped, with requests that wait."""
    shop = AskedShop.of_now(folder / "shop", patch, ago_us=HOUR, **options)
    backfill(shop.config(), QuietProgress(), publish=True)
    shop.send(shop.until_us, steps=24, every_us=30 * SECOND)
    shop.stream(patch)
    return shop


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AskedShop:
    """A shop whose stream has stopped."""
    return begun(tmp_path, monkeypatch, archive=Archive(tmp_path / "archive"))


def proven(shop: AskedShop) -> dict[str, Any]:
    found = verify(shop.config(), QuietProgress(), sample=20)
    assert found["mismatches"] == 0, str(found["first_mismatches"])
    return found


def steps(shop: AskedShop) -> dict[str, tuple[str, str]]:
    plan = plan_upgrade(shop.config())
    assert plan is not None
    return {step.what: (step.fate.value, step.why) for step in plan.steps}


def predictions(shop: AskedShop) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_predictions(
        shop.current.stream_folder, shop.project
    ).to_pylist()
    return found


def asked(shop: AskedShop) -> dict[str, Mapping[str, Any]]:
    """Return what was sent to ask, by id."""
    return {row["check"]: row for rows in shop.rows["checks"] for row in rows}


def check_inputs(shop: AskedShop, rows: list[dict[str, Any]]) -> None:
    """Compare inputs with what was sent, computed by hand."""
    sent = asked(shop)
    for row in rows:
        of = sent[row["request_id"]]
        assert row["items"] == of["items"]
        assert row["wanted"] == of["wanted"]
        assert row["discount"] == (of.get("coupon") or 0.0) * of["wanted"]


def test_a_stream_goes_on_with_a_request_that_has_grown(
    shop: AskedShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = {"check": "waits", "at": instant(AHEAD + shop.until_us), "card": "c-1"}
    waits |= {"wanted": 1.0, "items": 3}
    shop.rows["checks"][1].append(waits)
    shop.topics.topics["checks"][0].append((shop.until_us + HOUR, json.dumps(waits).encode()))
    shop.stream(monkeypatch, resume=True)
    exported(shop.config(), tmp_path / "export")
    shop.project = AFTER
    with pytest.raises(StateMismatch, match=r"request|other columns"):
        shop.stream(monkeypatch, resume=True)
    found = steps(shop)
    assert {what: fate for what, (fate, _) in found.items()} == {
        "view by_card": "kept",
        "view by_shop": "kept",
        "source payments": "kept",
        "source refunds": "kept",
        "source checks": "changed",
        "request checks": "kept",
        "definitions": "changed",
    }
    assert (
        "'items' becomes float64, from int64; 'coupon' (float64) is new"
        in (found["source checks"][1])
    )
    assert upgrade(shop.config(), QuietProgress())["upgraded"] == 1
    run = StreamRun.read(shop.current.stream_folder)
    assert run is not None
    joiners = carried_joiners(shop.config(), run)
    waited = {
        one
        for joiner in joiners.all
        for pending in joiner.pending.values()
        for one in pending.rows.column("check").to_pylist()
    }
    assert "waits" in waited
    proven(shop)
    shop.project, shop.senders = AFTER, (1, 2)
    shop.send(shop.until_us + AHEAD - 5 * MINUTE, steps=40, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    assert proven(shop)["predictions"] > 10
    rows = predictions(shop)
    check_inputs(shop, rows)
    assert waited <= {row["request_id"] for row in rows}
    assert any(row["discount"] for row in rows)
    assert any(row["items"] % 1 for row in rows)

    # Explained one by one, among them one that waited for the version before.
    for row in (next(r for r in rows if r["discount"]), next(r for r in rows if not r["discount"])):
        explained = explain(shop.config(), row["request_id"])
        assert {value.verdict for value in explained.values} == {"equal"}
        assert explained.stamps["input discount"] == str(row["discount"])

    # Files of the archive and of the log have the columns of then, and are read together.
    archive(shop.config(), QuietProgress())
    exported(shop.config(), tmp_path / "export")
    sent = asked(shop)
    for table in (table_rows(tmp_path / "export" / "checks"), read_checks(shop)):
        for one in table.to_pylist():
            of = sent[one["check"]]
            assert (one["items"], one["coupon"]) == (of["items"], of.get("coupon"))
            assert one["shop"] == of.get("shop")

    # The next build has all columns, in the same generation; its table has what was asked.
    generation = shop.current.generation
    begin_us, shop.until_us = shop.until_us, shop.read_until()
    backfill(shop.config(), QuietProgress())
    assert shop.current.generation == generation
    proven(shop)
    check_inputs(shop, training_rows(shop))

    figures = forget(shop.config(), "card", "c-1", QuietProgress())
    assert figures["removed"]["rows of logs"] > 5
    proven(shop)
    shop.send(begin_us + AHEAD + 20 * MINUTE, steps=5, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    proven(shop)


def read_checks(shop: AskedShop) -> pa.Table:
    log = stream_log(shop.current, shop.project)
    parts = [log.read("checks", number) for number in range(1, log.partitions("checks"))]
    return pa.concat_tables(parts)


def training_rows(shop: AskedShop) -> list[dict[str, Any]]:
    folder = shop.current.build_folder / paths.TRAINING_TABLE
    found: list[dict[str, Any]] = pa.concat_tables(
        [pa.parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    ).to_pylist()
    assert found
    return found


def test_a_column_that_no_input_reads_changes_no_definition(shop: AskedShop) -> None:
    """So a bundle, a training table and a build are what they were."""
    before = shop.project
    assert UNREAD.hash != before.hash  # `items` is read, and is wider
    only_new = replace(
        ASKED_BEFORE,
        schema={**ASKED_BEFORE.schema, "coupon": "float64"},
        optional=["coupon"],
    )
    shop.project = replace(BEFORE, request=only_new)
    assert shop.project.hash == before.hash
    assert steps(shop)["source checks"][0] == "changed"
    assert upgrade(shop.config(), QuietProgress())["upgraded"] == 1
    proven(shop)


def test_rejected_requests_are_mended_with_the_columns_of_now(
    shop: AskedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half of something was no int64, and is a float64 now."""
    at_us = shop.until_us + AHEAD
    wrong = {"check": "half", "at": instant(at_us), "card": "c-1", "wanted": 1.0, "items": 1.5}
    lost = {"check": "lost", "at": instant(at_us), "card": "c-1", "wanted": "?", "items": 2}
    for row in (wrong, lost):
        sent_us = shop.until_us + HOUR
        shop.topics.topics["checks"][0].append((sent_us, json.dumps(row).encode()))
    shop.stream(monkeypatch, resume=True)
    assert not {row["request_id"] for row in predictions(shop)} & {"half", "lost"}
    shop.project = AFTER
    upgrade(shop.config(), QuietProgress())
    out = replay(shop.config(), QuietProgress(), None)
    lines = {}
    (path,) = Path(shop.config().root).rglob("*.jsonl")
    for text in path.read_text().splitlines():
        line = json.loads(text)
        lines[json.loads(line["payload"])["check"]] = line
    assert lines.keys() == {"half", "lost"}, out
    coupon = {**lost, "wanted": 2.0, "coupon": 0.25}
    lines["lost"]["payload"] = json.dumps(coupon)
    mended = shop.folder / "mended.jsonl"
    mended.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    counts = replay(shop.config(), QuietProgress(), mended)
    assert counts["checks (topic)"]["stored"] == 2, counts
    shop.stream(monkeypatch, resume=True, meanwhile=lambda: wait_for_mended(shop))
    shop.send(at_us + MINUTE, steps=10, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    found = {row["request_id"]: row for row in predictions(shop)}
    assert (found["half"]["items"], found["half"]["discount"]) == (1.5, 0.0)
    assert (found["lost"]["items"], found["lost"]["discount"]) == (2.0, 0.5)
    proven(shop)


def wait_for_mended(shop: AskedShop) -> None:
    deadline = time.monotonic() + 120
    while not any(one.mended is not None for one in shop.live.polls.read(after=0)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def grown(**changes: Any) -> Request:
    return replace(ASKED_BEFORE, **changes)


SCHEMA = dict(ASKED_BEFORE.schema)
REFUSED = {
    "added, not optional": (
        grown(schema={**SCHEMA, "coupon": "float64"}),
        r"source 'checks': column 'coupon' is new, .*declare optional=\['coupon'\]",
    ),
    "widened, not declared": (
        grown(schema={**SCHEMA, "items": "float64"}),
        r"column 'items' is int64 in its log and float64 now: declare widened=\{'items': 'int64'\}",
    ),
    "removed": (
        grown(schema={n: d for n, d in SCHEMA.items() if n != "items"}, inputs={}),
        r"column 'items' is in its log and no longer declared; a log keeps its columns",
    ),
    "optional afterwards": (
        grown(optional=["items"]),
        r"column 'items' is optional now, and its log began with it",
    ),
    "another id": (
        grown(schema={**SCHEMA, "number": "string"}, optional=[], request_id="number"),
        r"column 'number' is new",
    ),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedShop]:
    """A shop whose stream has stopped, and which nobody changes."""
    with pytest.MonkeyPatch.context() as patch:
        yield begun(tmp_path_factory.mktemp("stopped"), patch)


@pytest.mark.parametrize("case", REFUSED)
def test_other_changes_of_a_request_are_refused_by_name(
    stopped: AskedShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    request, said = REFUSED[case]
    shop = copy.copy(stopped)
    shop.folder = tmp_path / "shop"
    shutil.copytree(stopped.folder, shop.folder)
    shop.topics.install(monkeypatch)
    shop.project = replace(BEFORE, request=request)
    with pytest.raises(StateMismatch, match=said):
        upgrade(shop.config(), QuietProgress())
    with pytest.raises(StateMismatch):
        shop.stream(monkeypatch, resume=True)
    with pytest.raises(StateMismatch, match="checks"):
        backfill(shop.config(), QuietProgress())


def test_a_view_may_have_a_key_that_requests_have_got_later(
    shop: AskedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests from before have a null key, and the view's empty values."""
    payments = shop.project.view("by_card").stream
    store = FeatureView(
        "store", Entity("shop", dtype="int64"), payments, "1m", {"sold_1h": count(over="1h")}
    )
    shop.project = replace(AFTER, views=[*BEFORE.views, store])
    upgrade(shop.config(), QuietProgress())
    shop.senders = (1, 2)
    shop.send(shop.until_us + 20 * MINUTE, steps=30, every_us=30 * SECOND)
    shop.stream(monkeypatch, resume=True)
    proven(shop)
    sent = asked(shop)
    rows = predictions(shop)
    assert all(
        row["store__sold_1h"] == 0 for row in rows if sent[row["request_id"]].get("shop") is None
    )
    log = Log(shop.current.build_folder)
    assert "shop" not in log.columns("checks")
