"""Every benchmark runs, and its sides give the same answers. Times decide nothing here."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.__main__ import NAMES, main
from benchmarks.backfill_kernel import kernel_answers
from benchmarks.backfill_peers import check_equal
from benchmarks.kernel import check_slicing
from benchmarks.measure import AnswersDiffer, Effort, Run, Side, alternate, ratios, table
from benchmarks.online_routes import AS_IT_COMES, WRITE, check_values, feast_route, our_route
from benchmarks.online_workload import SHAPES, Deck, expected_values
from benchmarks.workload import make_workload
from tests.support.quick_reports import check_quick_report

ROOT = Path(__file__).parents[2]
APART = "backfill_peers"
# Where a cluster runs: tests/pipelines/engines/exchange_test.py.
ON_FLINK = "live_flink"


class Reports(NamedTuple):
    """What quick runs of all benchmarks wrote, and what the one run apart printed."""

    results: Path
    printed: str


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Run them in one process, but for one: importing takes longer than they do."""
    results = tmp_path_factory.mktemp("results")
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main([APART, "--quick", "--results", str(results)]) == 0
    # The kernel's comes last, since it keeps its process on one core.
    names = sorted(set(NAMES) - {APART, ON_FLINK}, key=lambda name: (name == "kernel", name))
    command = [sys.executable, "-m", "benchmarks", *names, "--quick", "--here"]
    subprocess.run([*command, "--results", str(results)], cwd=ROOT, check=True)
    return Reports(results, printed.getvalue())


@pytest.mark.timeout(900)  # the process compiles what is not compiled yet
@pytest.mark.parametrize("name", [name for name in NAMES if name != ON_FLINK])
def test_a_quick_run_compares_answers_and_writes_its_figures(name: str, reports: Reports) -> None:
    check_quick_report(reports.results, name)


def test_a_benchmark_prints_what_it_writes(reports: Reports) -> None:
    report = json.loads((reports.results / f"{APART}.json").read_text())
    assert report["figures"]
    assert all(figure["name"] in reports.printed for figure in report["figures"])


@pytest.fixture(scope="module")
def answers() -> pa.Table:
    return kernel_answers(make_workload(2_000), "twelve")


def _changed(answers: pa.Table, name: str, factor: float) -> pa.Table:
    place = answers.schema.get_field_index(name)
    column = answers[name].to_numpy()
    first = np.flatnonzero(np.isfinite(column) & (column != 0))[0]
    column = column.copy()
    column[first] = column[first] * factor
    kept = pa.array(column, mask=np.isnan(column)).cast(answers.schema.field(name).type)
    return answers.set_column(place, name, kept)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("count_1d", 2.0),
        ("sum_6h", 1 + 1e-8),
        ("max_1d", 1 + 1e-15),
        ("last_1d", 1 + 1e-15),
        ("quantile_1d", 1.01),
    ],
)
def test_one_other_value_is_found(answers: pa.Table, name: str, factor: float) -> None:
    assert check_equal(answers, answers, "itself") == 12 * len(answers)
    with pytest.raises(AnswersDiffer, match=rf"1 of {len(answers)} values of {name} differ"):
        check_equal(answers, _changed(answers, name, factor), "a peer")


def test_a_missing_request_and_a_missing_feature_are_found(answers: pa.Table) -> None:
    with pytest.raises(AnswersDiffer, match="answered"):
        check_equal(answers, answers.slice(1), "a peer")
    with pytest.raises(AnswersDiffer, match="answered"):
        check_equal(answers, answers.drop_columns(["rate_6h"]), "a peer")


def test_a_null_for_a_value_is_found(answers: pa.Table) -> None:
    place = answers.schema.get_field_index("min_6h")
    nulls = pa.nulls(len(answers), pa.float64())
    with pytest.raises(AnswersDiffer, match="min_6h"):
        check_equal(answers, answers.set_column(place, "min_6h", nulls), "a peer")


def test_other_bits_in_slices_are_found() -> None:
    def batch(word: bytes) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict(
            {
                "as_of": pa.array([1], pa.int64()),
                "values": pa.array([word], pa.binary(8)),
                "nulls": pa.array([b"\0"], pa.binary(1)),
            }
        )

    assert check_slicing([batch(b"12345678")], [batch(b"12345678")]) == 1
    with pytest.raises(AnswersDiffer, match="second law"):
        check_slicing([batch(b"12345678")], [batch(b"12345679")])


def test_another_value_another_type_and_a_missing_column_of_a_store_are_found() -> None:
    written: dict[str, list[int | float]] = {"card__sum_1h": [0.1, 2.0], "card__count_1h": [1, 2]}
    assert check_values("a store", written, {**written, "card": ["a", "b"]}) == 4
    for column, found in [
        ("card__sum_1h", [0.1, 2.0000000000000004]),
        ("card__sum_1h", [0.1, 2]),
        ("card__count_1h", [1, None]),
        ("card__count_1h", [1]),
    ]:
        with pytest.raises(AnswersDiffer, match=f"a store: .*{column}"):
            check_values("a store", written, {**written, column: found})
    with pytest.raises(AnswersDiffer, match="card__count_1h"):
        check_values("a store", written, {"card__sum_1h": [0.1, 2.0]})


def test_a_deal_that_was_never_written_is_found(tmp_path: Path) -> None:
    route = our_route(SHAPES[1], 20, tmp_path, None)
    route.fill()
    assert route.check() == 20 * 32
    route.deck.deal(1)
    with pytest.raises(AnswersDiffer, match="ours: 1 of 20 values of card_home__home_count_1h"):
        route.check()


def test_cards_are_dealt_round_and_round_and_every_deal_has_new_values() -> None:
    deck = Deck(10)
    deals = [deck.deal(4) for _ in range(5)]
    assert [deal.number for deal in deals] == [1, 2, 3, 4, 5]
    assert sorted(np.concatenate([deal.cards for deal in deals])) == sorted([*range(10)] * 2)
    assert all(deck.last_deal[deals[4].cards] == 5)
    seen = [
        value
        for number in (1, 2)
        for values in expected_values(SHAPES[0], np.arange(10), np.full(10, number)).values()
        for value in values
    ]
    assert len(set(seen)) == 2 * 10 * 10


def test_feasts_sqlite_store_is_as_durable_as_ours_unless_it_is_taken_as_it_comes(
    tmp_path: Path,
) -> None:
    for name, settings in [(WRITE, ("wal", 1)), (WRITE + AS_IT_COMES, ("delete", 2))]:
        sdk = feast_route(name, SHAPES[0], 10, tmp_path, None).sdk
        connection = sdk.provider.online_store._get_conn(sdk.config)
        found = [
            connection.execute(f"PRAGMA {pragma}").fetchone()[0]
            for pragma in ("journal_mode", "synchronous")
        ]
        assert tuple(found) == settings


def test_sides_run_in_turn_and_setup_is_not_their_work() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        def work() -> int:
            order.append(name)
            return 1

        return Side(work, lambda: order.append(f"{name} is set up"))

    runs = alternate({"a": side("a"), "b": side("b")}, Effort(pairs=2, seconds=0.0))
    assert order == ["a is set up", "a", "b is set up", "b"] * 2
    assert [run.amount for run in runs["a"]] == [1, 1]


def test_a_ratio_is_the_median_of_the_pairs_with_its_spread() -> None:
    def runs(*rates: int) -> list[Run]:
        return [Run(rate, 1, 1.0, 0.5) for rate in rates]

    wall, cpu = ratios("a / b", runs(20, 30, 80), runs(10, 10, 20))
    assert (wall.value, wall.low, wall.high) == (3.0, 2.0, 4.0)
    assert (cpu.value, cpu.low, cpu.high) == (3.0, 2.0, 4.0)


def test_the_same_arguments_give_the_same_workload() -> None:
    one, two = make_workload(1_000), make_workload(1_000)
    assert one.events.equals(two.events)
    assert one.requests.equals(two.requests)
    assert one.events.num_rows == 600
    assert not make_workload(1_000, seed=2).events.equals(one.events)


def test_an_unknown_benchmark_and_quick_results_over_real_ones_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["kernal"])
    assert re.search(r"no benchmark 'kernal': there are kernel", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["kernel", "--quick"])
    assert "--results" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_figure() -> None:
    figure = {"name": "x", "value": 12345.6, "unit": "rows/s", "low": None, "high": None}
    lines = table([{"name": "kernel", "figures": [figure]}]).splitlines()
    assert len(lines) == 3
    assert "12,346" in lines[2]
