"""Feast is imported without typeguard's checks, by the command line; all else keeps them."""

from __future__ import annotations

import sys

import feast
import pytest
import typeguard

from tidemill.pipelines.commands import feast_import
from tidemill.pipelines.commands.cli import main


def test_methods_of_feast_are_those_of_its_source() -> None:
    # What typeguard has compiled names its functions.
    names = {
        name
        for kind in (feast.Entity, feast.FeatureView, feast.FeatureService)
        for method in vars(kind).values()
        if hasattr(method, "__code__")
        for name in method.__code__.co_names
    }
    assert "name" in names
    assert not {name for name in names if "check_argument_types" in name or "TypeCheck" in name}


def test_other_classes_are_checked_as_before() -> None:
    @typeguard.typechecked
    def plain(number: int) -> int:
        return number

    @typeguard.typechecked(collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    def with_options(numbers: list[int]) -> int:
        return sum(numbers)

    assert plain(2) + with_options([1, 2]) == 5
    with pytest.raises(typeguard.TypeCheckError):
        plain("2")  # type: ignore[arg-type]
    with pytest.raises(typeguard.TypeCheckError):
        with_options([1, 2, "3"])  # type: ignore[list-item]


def test_the_command_line_leaves_the_checks_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [one for one in sys.meta_path if not isinstance(one, feast_import._BeforeFeast)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.delitem(sys.modules, "feast")
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["--version"])
    assert "tidemill" in capsys.readouterr().out
    added = [one for one in sys.meta_path if isinstance(one, feast_import._BeforeFeast)]
    assert len(added) == 1
    # It finds nothing itself, and is asked once.
    assert added[0].find_spec("feast", None) is None
    assert not [one for one in sys.meta_path if isinstance(one, feast_import._BeforeFeast)]
