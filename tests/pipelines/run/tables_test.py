"""Tables of figures, on a terminal and in a file."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tidemill.pipelines.run.tables import Table, figure_tables, print_tables, write_value


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
        ("q" * 1_000, "q" * 1_000),
        ("q" * 800_000, "q" * 100 + "… (800,000 characters)"),
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
