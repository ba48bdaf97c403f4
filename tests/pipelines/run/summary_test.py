"""The summary: always complete; a stage replaces only its own figures."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tidemill.features.errors import DamagedFile, InputError
from tidemill.pipelines.run.summary import read_summary, write_summary


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
    with pytest.raises(DamagedFile, match=r"summary\.json .*remove it and run again"):
        read_summary(tmp_path)
