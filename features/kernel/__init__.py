"""The one kernel: what computes every feature value, in batch and in the stream.

Compiled code is cached on disk under a name made of the kernel's own sources: numba looks only at
the file of the function it loads, not at the functions that one calls, and would otherwise go on
using compiled code of an older kernel.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numba


def _cache_dir() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(here.rglob("*.py")):
        digest.update(source.read_bytes())
    # What the compiled functions take their constants from.
    for name in ("definitions/aggregations.py", "contract.py"):
        digest.update((here.parent / name).read_bytes())
    name = digest.hexdigest()[:16]
    beside = here / "__pycache__"
    try:
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return str(beside / name)
    except OSError:
        # An installation that cannot be written to: compile into the temporary directory.
        pass
    return str(Path(tempfile.gettempdir()) / f"tidemill-kernel-{name}")


if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = _cache_dir()
