"""A program that compiles or uses the kernel, and prints as JSON what was compiled.

``share N`` compiles a share of the entries; ``use`` calls `compile_kernel` twice and then uses all
parts of the kernel that the demo uses: twelve features, publications, encoding, duplicates.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import numpy as np
from numba.core import types
from numba.core.registry import CPUDispatcher

from benchmarks.kernel import SLICE_ROWS, OneView, cut
from benchmarks.workload import TWELVE, make_workload
from tidemill.features.kernel.advance import Publish
from tidemill.features.kernel.compilation import compile_here, compile_kernel
from tidemill.features.kernel.dedupe import PairSet, first_occurrences
from tidemill.features.kernel.encoding import canonical_bytes, decode, encode
from tidemill.features.kernel.hashing import digest_rows
from tidemill.features.kernel.signatures import shares

ROWS: Final = 2 * SLICE_ROWS


def dispatchers() -> list[Any]:
    """Return every compiled function of the kernel, inner ones too."""
    found = {
        id(value): value
        for name, module in sorted(sys.modules.items())
        if name.startswith("tidemill.features.kernel")
        for value in vars(module).values()
        if isinstance(value, CPUDispatcher)
    }
    return list(found.values())


def is_entry(function: Any) -> bool:
    """Return whether Python can call a function."""
    return not function.targetoptions.get("no_cpython_wrapper", False)


def compiled() -> list[dict[str, Any]]:
    """Return what was compiled or loaded: each function with its signatures."""
    return [
        {
            "name": f"{function.py_func.__module__}.{function.py_func.__name__}",
            "entry": is_entry(function),
            "signatures": [repr(signature) for signature in function.signatures],
            "without_literals": [
                repr(tuple(types.unliteral(kind) for kind in signature))
                for signature in function.signatures
            ],
            "compiled_here": sum(function.stats.cache_misses.values()) if is_entry(function) else 0,
        }
        for function in dispatchers()
        if function.signatures
    ]


def use() -> None:
    """Use the kernel as the demo does."""
    one = OneView(TWELVE)
    workload = make_workload(ROWS)
    slices = [one.prepare(piece) for piece in cut(workload, SLICE_ROWS)]
    for publish in Publish:
        state, _ = one.advance_over(slices, publish)
        state = decode(encode(state), one.plan)
        canonical_bytes(state)
    digests = digest_rows(workload.events)
    first_occurrences(digests)
    PairSet().add(digests, np.asarray(workload.event_times))


if __name__ == "__main__":
    if sys.argv[1] == "share":
        compile_here(shares()[int(sys.argv[2])])
        print(json.dumps(compiled()))
    else:
        seconds = [compile_kernel(), compile_kernel()]
        use()
        print(json.dumps({"seconds": seconds, "compiled": compiled()}))
