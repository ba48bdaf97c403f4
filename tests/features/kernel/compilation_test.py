"""The whole kernel is compiled once, beforehand, each function for one signature."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

from tests.support.kernel_signatures import dispatchers, is_entry
from tests.support.markdown import ROOT
from tidemill.features.kernel import advance, compilation  # noqa: F401 - registers all folds
from tidemill.features.kernel.signatures import entries, shares

MOST_SIGNATURES: Final = 40
Found = list[dict[str, Any]]


def _program(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.kernel_signatures", *arguments],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _printed(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numba")


@pytest.fixture(scope="module")
def compiled(cache: Path) -> list[Found]:
    """What each share compiled, in processes as `compile_kernel` starts them."""
    processes = [_program(cache, "share", str(number)) for number in range(len(shares()))]
    return [_printed(process) for process in processes]


@pytest.fixture(scope="module")
def used(cache: Path, compiled: list[Found]) -> dict[str, Any]:
    """What a program compiled that uses the kernel as the demo does, on the filled cache."""
    found: dict[str, Any] = _printed(_program(cache, "use"))
    return found


@pytest.mark.timeout(900)
def test_no_function_is_compiled_twice_for_a_literal_argument(compiled: list[Found]) -> None:
    for share in compiled:
        assert {found["name"] for found in share if not found["entry"]}
        for found in share:
            plain = found["without_literals"]
            assert found["signatures"] == plain, found["name"]
            assert len(set(plain)) == len(plain), found["name"]


def test_each_entry_is_compiled_for_one_signature(compiled: list[Found]) -> None:
    names = [
        f"{found['name']}{signature}"
        for share in compiled
        for found in share
        if found["entry"]
        for signature in found["signatures"]
    ]
    assert len(names) == len(set(names)) == len(entries()) <= MOST_SIGNATURES


def test_what_the_demo_needs_is_all_compiled_beforehand(used: dict[str, Any]) -> None:
    top_level = [found for found in used["compiled"] if found["entry"]]
    assert {found["name"]: found["compiled_here"] for found in top_level} == {
        found["name"]: 0 for found in top_level
    }
    assert [found["name"] for found in top_level if len(found["signatures"]) > 1] == []
    assert 20 < sum(len(found["signatures"]) for found in top_level) <= MOST_SIGNATURES


def test_a_warm_cache_costs_nothing(used: dict[str, Any]) -> None:
    first, second = used["seconds"]
    assert first > 0
    assert second == 0


def test_every_entry_is_listed_once_and_in_one_share() -> None:
    listed = [function for function, _ in entries()]
    assert len(listed) == len({id(function) for function in listed})
    assert {cast("Any", f).py_func.__name__ for f in listed} == {
        f.py_func.__name__ for f in dispatchers() if is_entry(f)
    }
    assert sorted(id(f) for share in shares() for f, _ in share) == sorted(id(f) for f in listed)


class _Steps:
    """Progress that records its steps."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows") -> Iterator[None]:
        self.names.append(name)
        yield


@pytest.mark.parametrize("python", ["/bin/false", "/there/is/no/python"])
def test_where_no_process_can_compile_this_one_does(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(compilation, "_marker", lambda: tmp_path / "complete")
    monkeypatch.setattr(compilation, "compile_here", compiled.extend)
    monkeypatch.setattr(sys, "executable", python)
    steps = _Steps()
    assert compilation.compile_kernel(steps) > 0
    assert compiled == entries()
    assert compilation.compile_kernel(steps) == 0
    assert steps.names == ["compile the kernel, once"]


def test_where_nothing_is_kept_this_process_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(compilation, "_marker", lambda: None)
    monkeypatch.setattr(compilation, "compile_here", compiled.extend)
    compilation.compile_kernel()
    assert compiled == entries()
