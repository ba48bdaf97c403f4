"""A source with too many rejected rows fails the command, and says which, why and what to do."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tidemill.features.errors import TooManyRejected
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.commands.explained import in_short
from tidemill.pipelines.ingest.rejected_shares import REMEDIES, examples
from tidemill.pipelines.run.summary import read_summary

PROJECT = """
from tidemill import Entity, EventStream, FeatureView, Project, Request, count

orders = EventStream(
    "orders", event_time="at", event_id="id",
    schema={"id": "string", "at": "timestamp", "user": "string", "price": "float64"},
)
asked = Request(
    "asked", request_time="at", request_id="id",
    schema={"id": "string", "at": "timestamp", "user": "string"},
)
view = FeatureView(
    "seen", entity=Entity("user"), stream=orders, hop="1h", features={"n": count(over="1d")}
)
project = Project(name="shop", request=asked, views=[view])


def drop_first(batch):
    import pyarrow as pa
    import pyarrow.compute as pc
    return batch.append_column("__drop__", pc.equal(batch["id"], "o0"))
"""
YAML = """\
project: {module}:project
root: run
sources:
  orders: {{files: [orders.csv], max_rejected: {share}}}
  asked: {{files: [asked.csv]}}
splits:
  train_until: 2026-02-01T00:00:00Z
  evaluate_until: 2026-02-15T00:00:00Z
  stream_until: 2026-03-01T00:00:00Z
"""
ROWS = 20


def order(number: int, price: Any = 1.5, time: str = "T00:00:00Z") -> str:
    return f"o{number},2026-01-{number + 1:02}{time},u,{price}"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project whose orders are all good."""
    module = f"shop_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(PROJECT)
    write_yaml(tmp_path)
    write_orders(tmp_path, [order(n) for n in range(ROWS)])
    (tmp_path / "asked.csv").write_text("id,at,user\nr0,2026-01-09T00:00:00Z,u\n")
    return tmp_path


def write_yaml(folder: Path, share: str = "0.1") -> None:
    (module,) = folder.glob("shop_*.py")
    (folder / "tidemill.yaml").write_text(YAML.format(module=module.stem, share=share))


def write_orders(folder: Path, lines: list[str]) -> None:
    (folder / "orders.csv").write_text("\n".join(["id,at,user,price", *lines]) + "\n")


def run(command: str, folder: Path) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        main([command, "--quiet", "--config", str(folder / "tidemill.yaml")])
    return left.value.code


def rejections(folder: Path) -> list[dict[str, Any]]:
    rows = [
        row
        for path in (folder / "run" / "rejected").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    return sorted(rows, key=lambda row: int(row["position"]))


@pytest.mark.parametrize("command", ["validate", "backfill"])
def test_a_source_past_its_share_fails_and_keeps_its_rejected_records(
    shop: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    # All prices have a decimal comma, as a spreadsheet writes them; one has a naive time, too.
    lines = [order(n, '"1,5"', "T00:00:00" if n == 3 else "T00:00:00Z") for n in range(ROWS)]
    write_orders(shop, lines)
    assert run(command, shop) == 1
    out, err = capsys.readouterr()
    for said in (
        "orders: 20 of 20 rows are rejected, more than its max_rejected of 0.1",
        "19 are wrong_type, such as orders.csv:2: column 'price': found '1,5', expected float64",
    ):
        assert said in " ".join(err.split())
    assert err.count("\n") == 1
    assert f"{command}: orders / rejected examples" in out
    # The figures of a validation are kept; those of a backfill are of the current build.
    summary = read_summary(shop / "run")
    assert summary.keys() == ({"validate"} if command == "validate" else set())
    for shown in ("column 'at': found '2026-01-04T00:00:00'", "orders.csv:5", "naive_time"):
        assert shown in out
    assert [row["payload"].decode() for row in rejections(shop)] == lines


def test_a_failed_backfill_leaves_the_build_before_it(shop: Path) -> None:
    assert run("backfill", shop) == 0
    before = (shop / "run" / "CURRENT").read_bytes()
    write_orders(shop, [order(n, "?") for n in range(ROWS)])
    assert run("backfill", shop) == 1
    assert (shop / "run" / "CURRENT").read_bytes() == before
    assert len(rejections(shop)) == ROWS


@pytest.mark.parametrize(
    ("share", "bad", "status"),
    [("0.1", 2, 0), ("0.1", 3, 1), ("0.35", 7, 0), ("0", 0, 0), ("0", 1, 1), ("1", 20, 0)],
)
def test_the_share_itself_is_allowed(shop: Path, share: str, bad: int, status: int) -> None:
    write_yaml(shop, share)
    write_orders(shop, [order(n, "?" if n < bad else 1) for n in range(ROWS)])
    assert run("validate", shop) == status
    assert len(rejections(shop)) == bad


def test_rows_that_the_transform_drops_do_not_dilute_the_share(shop: Path) -> None:
    (module,) = shop.glob("shop_*.py")
    text = (shop / "tidemill.yaml").read_text()
    text = text.replace("max_rejected: 0.1", f"transform: {module.stem}:drop_first")
    (shop / "tidemill.yaml").write_text(text)
    dropped = ["o0,2026-01-01T00:00:00Z,u,1"] * 100
    write_orders(shop, [*dropped, order(1, "?"), *(order(n) for n in range(2, 10))])
    assert run("validate", shop) == 1


def test_validate_shows_an_example_of_each_reason_and_column(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yaml(shop, "1")
    write_orders(shop, [order(0, "?"), order(1, "nan"), "o2,,u,1", "o3", order(4, "x")])
    assert run("validate", shop) == 0
    out = capsys.readouterr().out
    table = out.split("orders / rejected examples\n")[1].splitlines()
    words = [line.split()[:4] for line in table[1:5]]
    assert words == [
        ["wrong_type", "price", "2", "orders.csv:2"],
        ["nan", "price", "1", "orders.csv:3"],
        ["null_time", "at", "1", "orders.csv:4"],
        ["broken_csv_line", "-", "1", "orders.csv:5"],
    ]
    assert "column 'price': found '?', expected float64" in table[1]


def test_examples_count_each_reason_of_each_column() -> None:
    details = [
        "column 'a': found 1, expected text",
        'column "it\'s": found 2, expected text',
        "the input has no column 'a'; known: b",
        "column 'a': found 3, expected text",
        "found 1 cells, expected 2 as the header has",
    ]
    batch = rejected.batch(
        Stage.VALIDATE, stream="s", partition=0, positions=np.arange(5),
        reasons=[Reason.WRONG_TYPE] * 2 + [Reason.MISSING_COLUMN] + [Reason.WRONG_TYPE] * 2,
        details=details, origins=[f"s.csv:{n}" for n in range(5)], payloads=[b""] * 5,
    )  # fmt: skip
    found = examples([batch.slice(0, 2), batch.slice(2)])
    assert [(e["reason"], e["column"], e["records"], e["origin"]) for e in found] == [
        ("wrong_type", "a", 2, "s.csv:0"),
        ("wrong_type", "it's", 1, "s.csv:1"),
        ("missing_column", "a", 1, "s.csv:2"),
        ("wrong_type", None, 1, "s.csv:4"),
    ]
    assert found[0]["detail"] == details[0]


def test_every_reason_of_the_reader_has_a_remedy() -> None:
    of_streams = {
        Reason.NO_ANSWER,
        Reason.MODEL_FAILED,
        Reason.MODEL_TIMED_OUT,
        Reason.SCORE_NAN,
    }
    assert REMEDIES.keys() == set(Reason) - of_streams
    longest = "orders: 1,000,000 of 1,000,000 rows are rejected, more than its max_rejected of 0.1."
    for remedy in REMEDIES.values():
        # The end of an error is shown whole.
        text = f"{longest} {'x' * 200}; to mend: {remedy}. All are in rejected/"
        assert in_short(text).endswith(f"{remedy[-50:]}. All are in rejected/")


def test_the_error_keeps_its_figures_when_it_is_pickled() -> None:
    error = pickle.loads(pickle.dumps(TooManyRejected("too many", {"sources": {"a": 1}})))
    assert (str(error), error.figures) == ("too many", {"sources": {"a": 1}})
