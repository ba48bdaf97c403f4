"""Compile the whole kernel beforehand, as one step instead of a pause at each first call.

    seconds = compile_kernel(progress)

Two child processes compile half of the entries each. This takes half the time on two cores, and
keeps numba's memory out of this process. The children write to the cache of compiled code
(`kernel.code_cache`), from which this process loads an entry at its first call. The step is
optional: an entry that is not compiled yet is compiled at its first call.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from numba.core.registry import cpu_target

from tidemill.features.kernel import code_cache
from tidemill.features.kernel.signatures import Entry, entries, shares

STEP: Final = "compile the kernel, once"
"""Name of the step in the progress display."""


class ShowsSteps(Protocol):
    """Shows progress, such as `pipelines.run.progress`."""

    def stage(
        self, name: str, total: int | None = None, unit: str = ...
    ) -> AbstractContextManager[Any]:
        """Show a step while the context is open, and then the seconds that it took."""


def is_compiled() -> bool:
    """Return whether the cache has the compiled kernel, for this Python and this CPU."""
    marker = _marker()
    return marker is not None and marker.exists()


def compile_kernel(progress: ShowsSteps | None = None) -> float:
    """Compile every entry of the kernel that is not compiled yet.

    Args:
        progress: Shows the step, unless the kernel is compiled already.

    Returns:
        The seconds that it took; 0.0 if the kernel was compiled already.

    Raises:
        UnsafeCache: Another user can write to the cache of compiled code.
    """
    if is_compiled():
        return 0.0
    began = time.perf_counter()
    with progress.stage(STEP, unit="") if progress else contextlib.nullcontext():
        marker = _marker()
        if marker is None or not _compiled_by_processes():
            compile_here(entries())
        if marker is not None:
            marker.touch()
    return time.perf_counter() - began


def load_kernel() -> None:
    """Load the compiled kernel into this process: those that are forked from it have it too.

    Each process would else load numba's type registries, which takes most of a second.
    """
    compile_here(entries())


def compile_here(wanted: Sequence[Entry]) -> None:
    """Compile entries in this process, with garbage collection turned off.

    numba allocates millions of objects that are all in use; the collector would traverse them again
    and again, for a tenth of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        for function, signature in wanted:
            function.compile(signature)  # type: ignore[attr-defined]
    finally:
        if collects:
            gc.enable()


def _compiled_by_processes() -> bool:
    """Compile in child processes; False if one of them fails."""
    # numba colours messages that are never shown, for 7 % of the time.
    environment = {**os.environ, "NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(entry or "." for entry in sys.path)
    processes = []
    try:
        for number in range(len(shares())):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", __name__, str(number)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        return not any(process.wait() for process in processes)
    except OSError:
        # No process can be started: this process compiles instead.
        return False
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _marker() -> Path | None:
    """Return the file that marks a compiled kernel; None where nothing is kept.

    Its directory is named by the sources and numba's version, and it by the rest that numba's cache
    depends on: Python and the CPU.
    """
    directory = code_cache.code_cache()
    if directory is None:
        return None
    machine = cpu_target.target_context.codegen().magic_tuple()
    name = hashlib.sha256(repr((machine, sys.version)).encode())
    return directory / f"complete-{name.hexdigest()[:16]}"


if __name__ == "__main__":
    compile_here(shares()[int(sys.argv[1])])
