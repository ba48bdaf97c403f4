"""What computes a process's scores: the device, and what of it decides about last bits.

On a CPU TensorFlow's kernels choose their instructions when they run: oneDNN has others for AVX2
than for AVX-512, which add in another order, and the number of threads decides how a sum is cut. So
a CPU is named by its model, its widest instructions, the threads of one operation and the
environment variables that choose kernels.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tidemill.serving.cores import usable_cores
from tidemill.serving.models.tensorflow_start import load_tensorflow

_CPU_INFO: Final = Path("/proc/cpuinfo")
_WIDEST: Final = (
    "amx_fp16", "amx_bf16", "amx_int8", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512bw",
    "avx512f", "avx_vnni", "avx2", "avx", "sse4_1", "sve2", "sve", "asimddp", "asimd",
)  # fmt: skip
"""Flags of instruction sets that kernels are chosen by, of x86 and of ARM, the widest first."""
_CHOOSERS: Final = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")
"""Environment variables by which a user chooses kernels."""


def device_stamp() -> str:
    """Return the device that scores: a GPU's name, or what decides about the bytes of a CPU.

    >>> device_stamp().split()[0] in ("CPU", "GPU")
    True
    """
    tf = load_tensorflow()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return f"GPU {details.get('device_name', 'unknown')}"
    threads = tf.config.threading.get_intra_op_parallelism_threads() or usable_cores()
    info = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""
    return cpu_stamp(platform.machine(), info, threads, os.environ)


def cpu_stamp(machine: str, info: str, threads: int, environment: Mapping[str, str]) -> str:
    r"""Return the stamp of a CPU.

    Args:
        machine: The architecture, ``x86_64`` or ``aarch64``.
        info: What Linux says of it in ``/proc/cpuinfo``; empty elsewhere.
        threads: The threads that share one operation.
        environment: The process's environment variables.

    >>> info = "vendor_id : AuthenticAMD\ncpu family : 25\nmodel : 1\nflags : fma avx avx2"
    >>> cpu_stamp("x86_64", info, 2, {})
    'CPU x86_64 AuthenticAMD 25/1 avx2, 2 threads'
    """
    first, _, _ = info.partition("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    maker = said.get("vendor_id") or said.get("CPU implementer", "")
    model = "/".join(
        said[name] for name in ("cpu family", "model", "CPU part", "CPU variant") if name in said
    )
    flags = {*said.get("flags", said.get("Features", "")).split()}
    widest = next((flag for flag in _WIDEST if flag in flags), "")
    words = " ".join(word for word in ("CPU", machine, maker, model, widest) if word)
    chosen = [f"{name}={environment[name]}" for name in _CHOOSERS if name in environment]
    return ", ".join([words, f"{threads} thread{'s' * (threads != 1)}", *chosen])
