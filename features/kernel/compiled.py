"""The decorators of compiled functions: `entry` for what Python calls, `inner` for the rest.

The cost of compilation grows with the number of functions and signatures, so:

* An **entry** is kept on disk (`code_cache`), with all the code that it calls.
* An **inner** function is called by compiled functions only. It has no wrapper for Python and no
  cache file; tests call it through an entry.
* Neither is compiled again for a constant: numba would compile a copy of a function for each
  literal argument (``f(x, 0)`` beside ``f(x, n)``). LLVM propagates constants wherever it inlines.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from numba import config, njit
from numba.core import types

from tidemill.features.kernel.code_cache import LOCATOR, code_cache
from tidemill.features.kernel.compiler import (
    EntryCompiler,
    InnerCompiler,
    compile_options,
)

_ENTRY: Final = {"no_cfunc_wrapper": True, **compile_options(EntryCompiler)}
_INNER: Final = {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    **compile_options(InnerCompiler),
}


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep it on disk.

    Args:
        function: Takes arrays and numbers, of the types listed in `kernel.signatures`.

    Returns:
        The compiled function (numba compiles it at its first call).
    """
    directory = code_cache()
    if directory is None:
        return _without_literals(njit(**_ENTRY)(function))
    # numba reads the settings here only, so other numba functions keep their directory.
    before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
    config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(directory), LOCATOR
    try:
        return _without_literals(njit(cache=True, **_ENTRY)(function))
    finally:
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before


def inner(function: Callable[..., Any] | None = None, *, forceinline: bool = False) -> Any:
    """Compile a function that only compiled functions call.

    Args:
        function: The function.
        forceinline: Inline it in LLVM, at half the cost of numba's own ``inline="always"``. False
            leaves the choice to LLVM, also below a caller that is inlined.

    Returns:
        The compiled function, or a decorator where only the option is given.
    """
    if function is None:
        return functools.partial(inner, forceinline=forceinline)
    return _without_literals(njit(forceinline=forceinline, **_INNER)(function))


def _without_literals(dispatcher: Any) -> Any:
    """Let numba choose the signature by the type of a constant argument, not by its value."""
    choose = dispatcher.get_call_template

    def get_call_template(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return choose(
            tuple(types.unliteral(kind) for kind in args),
            {name: types.unliteral(kind) for name, kind in kws.items()},
        )

    dispatcher.get_call_template = get_call_template
    return dispatcher


def read_only(array: Any) -> Any:
    """Return a read-only view of an array.

    Some buffers of Arrow are writable and some are not, and numba would compile a function for
    each. So every array that compiled code only reads is passed as read-only.
    """
    view = array.view()
    view.flags.writeable = False
    return view
