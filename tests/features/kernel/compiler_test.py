"""The kernel is compiled by fewer passes than numba's own, with the same results."""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest
from numba.core.registry import cpu_target

from tidemill.features.contract import Int64Array
from tidemill.features.kernel.compiled import inner
from tidemill.features.kernel.compiler import (
    EntryCompiler,
    InnerCompiler,
    _LinkedLibrary,
    compile_options,
)


@inner
def _twice_or_raise(value: int) -> int:
    if value < 0:
        raise ValueError("value is negative")
    return 2 * value


@numba.njit(**compile_options(EntryCompiler))
def _sum_of_twice(values: Int64Array) -> int:
    total = 0
    for value in values:
        total += _twice_or_raise(value)
    return total


def test_an_entry_runs_with_the_code_of_its_inner_functions() -> None:
    assert _sum_of_twice(np.arange(5)) == 20
    with pytest.raises(ValueError, match="value is negative"):
        _sum_of_twice(np.array([1, -1]))


def test_an_inner_function_has_no_machine_code_of_its_own() -> None:
    _sum_of_twice.compile((numba.int64[::1],))
    engine = cpu_target.target_context.codegen()._engine
    (linked,) = _twice_or_raise.overloads.values()
    (called,) = _sum_of_twice.overloads.values()
    assert isinstance(linked.library, _LinkedLibrary)
    assert not engine.is_symbol_defined(linked.fndesc.llvm_func_name)
    assert engine.is_symbol_defined(called.fndesc.llvm_func_name)


@pytest.mark.parametrize("compiler", [EntryCompiler, InnerCompiler])
def test_the_numba_of_the_lock_is_one_whose_passes_are_known(compiler: type[EntryCompiler]) -> None:
    assert compile_options(compiler) == {"pipeline_class": compiler}


def test_another_numba_compiles_by_its_own_passes_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba, "__version__", "0.69.0")
    with pytest.warns(UserWarning, match=re.escape("numba 0.69.0 compiles the kernel by all of")):
        assert compile_options(InnerCompiler) == {}
