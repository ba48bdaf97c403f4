"""Importing TensorFlow without the messages of its start."""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# Messages of TensorFlow's C++ code on every start: information and warnings, an explanation why
# they go to stderr and, on a machine without an NVIDIA device, that CUDA found none.
_CHATTER: Final = re.compile(rb"[IW]\d{4} |WARNING: All log messages before absl::InitializeLog|$")
_NO_GPU: Final = b"failed call to cuInit"


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Hold back the output to file descriptor 2, and then write it without known chatter."""
    has_nvidia = Path("/dev/nvidiactl").exists()
    sys.stderr.flush()
    real = os.dup(2)
    python_stderr = sys.stderr
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        # Python's own messages (a progress bar, say) still go straight to the terminal.
        sys.stderr = os.fdopen(os.dup(real), "w", buffering=1)
        try:
            yield
        finally:
            sys.stderr.close()
            sys.stderr = python_stderr
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held.read().splitlines(keepends=True):
                if _CHATTER.match(line.rstrip()) or (_NO_GPU in line and not has_nvidia):
                    continue
                os.write(2, line)


@functools.cache
def load_tensorflow() -> Any:
    """Import TensorFlow without its start-up chatter, and return the module.

    Errors are still printed. ``TF_CPP_MIN_LOG_LEVEL`` keeps its value if it is set.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" in sys.modules:
        import tensorflow as tf
    else:
        with _quiet_start():
            import tensorflow as tf

            # CUDA writes its messages when devices are first listed.
            tf.config.list_physical_devices()
    return tf


def compiles_by_itself() -> bool:
    """Tell whether TensorFlow compiles graphs with XLA in this process without being asked to."""
    tf = load_tensorflow()
    return bool(tf.config.optimizer.get_jit()) or "auto_jit" in os.environ.get("TF_XLA_FLAGS", "")
