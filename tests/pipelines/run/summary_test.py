"""The summary: whole at all times, one stage's figures at a time, and readable."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tidemill.features.errors import InputError, StateError
from tidemill.pipelines.run.summary import (
    Table,
    figure_tables,
    print_tables,
    read_summary,
    write_summary,
    write_value,
)


def test_there_is_none_before_the_first_stage(tmp_path: Path) -> None:
    assert read_summary(tmp_path) == {}


def test_a_stage_replaces_its_own_figures_and_keeps_those_before_it(tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_summary(root, "backfill", {"rows": 1})
    write_summary(root, "train", {"auc": 0.7, "old": True})
    write_summary(root, "train", {"auc": 0.8})
    assert read_summary(root) == {"backfill": {"rows": 1}, "train": {"auc": 0.8}}
    assert [path.name for path in root.iterdir()] == ["summary.json"]


def test_figures_of_stages_that_build_on_a_new_one_are_removed(tmp_path: Path) -> None:
    for stage in ("backfill", "train", "stream", "verify"):
        write_summary(tmp_path, stage, {"of": "the first run"})
    write_summary(tmp_path, "stream", {"of": "the second run"})
    assert set(read_summary(tmp_path)) == {"backfill", "train", "stream"}


def test_stages_that_end_at_once_lose_nothing(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=write_summary, args=(tmp_path, f"stage {n}", {"n": n}))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_summary(tmp_path) == {f"stage {n}": {"n": n} for n in range(16)}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"a": {"b": [1, float("nan")]}}, r"train\.a\.b\[1\] is nan"),
        ({"a": Path("x")}, r"train\.a is a .*Path, expected a JSON value"),
        ({1: 2}, "has the key 1, expected a text"),
    ],
)
def test_what_is_no_json_is_refused_and_the_summary_stays(
    figures: dict[Any, Any], expected: str, tmp_path: Path
) -> None:
    write_summary(tmp_path, "train", {"auc": 0.7})
    with pytest.raises(InputError, match=expected):
        write_summary(tmp_path, "train", figures)
    assert read_summary(tmp_path) == {"train": {"auc": 0.7}}


@pytest.mark.parametrize("text", ["{", "[]", '{"train": 1}'])
def test_a_broken_summary_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(StateError, match=r"summary\.json .*remove it and run again"):
        read_summary(tmp_path)


def test_inner_figures_carry_the_names_above_them_and_lists_become_tables() -> None:
    tables = figure_tables(
        "verify",
        {
            "rows": 12_345,
            "by_reason": {"wrong_type": 1},
            "seeds": [1, 2],
            "curve": list(range(9)),
            "first_mismatches": [{"feature": "x", "seen": 1.5}, {"feature": "y", "seen": None}],
        },
    )
    assert tables == [
        Table(
            "verify",
            ("figure", "value"),
            [
                ("rows", "12,345"),
                ("by reason / wrong type", "1"),
                ("seeds", "1, 2"),
                ("curve", "9 values"),
            ],
            frozenset([1]),
        ),
        Table(
            "verify: first mismatches",
            ["feature", "seen"],
            [["x", "1.5"], ["y", "-"]],
            frozenset([1]),
        ),
    ]


def test_deep_lists_are_taken_apart_by_name() -> None:
    runs = [
        {"name": "by product", "seeds": [], "metrics": [{"auc": 0.7}]},
        {"metrics": [{"auc": 1}]},
    ]
    assert figure_tables("train", {"baselines": runs}) == [
        Table(
            "train",
            ("figure", "value"),
            [("baselines / by product / seeds", "none")],
            frozenset([1]),
        ),
        Table("train: baselines / by product / metrics", ["auc"], [["0.7"]], frozenset([0])),
        Table("train: baselines / 1 / metrics", ["auc"], [["1"]], frozenset([0])),
    ]


def test_a_long_list_is_cut_and_says_so() -> None:
    (table,) = figure_tables("train", {"effects": [{"rank": n} for n in range(45)]})
    assert table.title == "train: effects (the first 20 of 45)"
    assert len(table.rows) == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (336_776, "336,776"),
        (0.000123456, "0.0001235"),
        (123_456.7, "123,457"),
        ([], "none"),
        ("fnapi", "fnapi"),
    ],
)
def test_figures_are_written_for_a_reader(value: Any, text: str) -> None:
    assert write_value(value) == text


def test_a_terminal_gets_a_drawn_table_with_every_cell_as_it_is() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    print_tables([Table("[b]title[/b]", ("figure", "value"), [("[red]x", "1")])], stream)
    shown = stream.getvalue()
    assert "[b]title[/b]" in shown
    assert "[red]x" in shown
    assert "─" in shown
    assert json.dumps(shown).count("value") == 1
