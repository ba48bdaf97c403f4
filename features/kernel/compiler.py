"""How numba compiles the kernel: by its own passes, without those that the kernel does not need.

numba compiles a function in passes, and a decorator can choose the passes
(`numba.core.compiler.CompilerBase`). The kernel's functions are plain loops over arrays, so:

* The passes for closures, ``with`` blocks, array expressions and literal arguments are left out.
* An inner function becomes LLVM code that its callers link. It gets no machine code, because Python
  cannot call it.

This saves a third of the time and does not change the code that runs. It depends on internals of
numba, so a version of numba that the tests have not seen compiles by all of its passes, after a
warning.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numba
from numba import _dynfunc
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass

_TESTED: Final = "0.68."

_NEEDLESS: Final = {
    untyped_passes.WithLifting,
    untyped_passes.InlineClosureLikes,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.InlineInlinables,
    untyped_passes.FindLiterallyCalls,
    untyped_passes.LiteralUnroll,
    untyped_passes.LiteralPropagationSubPipelinePass,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
    typed_passes.DumpParforDiagnostics,
}


class EntryCompiler(CompilerBase):
    """Compiles a function that Python calls."""

    lowering: type[typed_passes.NativeLowering] = typed_passes.NativeLowering

    def define_pipelines(self) -> list[PassManager]:
        """Return numba's passes without the needless ones."""
        passes = PassManager("kernel")
        for each, description in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if each not in _NEEDLESS:
                lowers = each is typed_passes.NativeLowering
                passes.add_pass(self.lowering if lowers else each, description)
        passes.finalize()
        return [passes]


class _LinkedLibrary(JITCodeLibrary):
    """The optimised LLVM code of a function that is only linked into its callers."""

    def _finalize_final_module(self) -> None:
        # numba's method also adds the module to the engine, which makes machine code of it.
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _InnerLowering(typed_passes.NativeLowering):
    """Lowers a function to LLVM code and makes it known to its callers."""

    _name = "inner_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state["cr"]
        # numba identifies a compiled function by its callable; this one has no code (address 0).
        name = lowered.fndesc.qualname
        handle = _dynfunc.make_function(
            lowered.fndesc.lookup_module(), name, name, 0, lowered.env, (state.library,)
        )
        state.targetctx.insert_user_function(handle, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=handle)
        return True


class InnerCompiler(EntryCompiler):
    """Compiles a function that only compiled functions call."""

    lowering = _InnerLowering


def compile_options(compiler: type[CompilerBase]) -> dict[str, type[CompilerBase]]:
    """Return the options of `numba.njit` that choose a compiler; none for another numba."""
    if numba.__version__.startswith(_TESTED):
        return {"pipeline_class": compiler}
    warnings.warn(
        f"numba {numba.__version__} compiles the kernel by all of its own passes, which takes half "
        f"as long again: this tidemill knows the passes of numba {_TESTED}x",
        stacklevel=2,
    )
    return {}
