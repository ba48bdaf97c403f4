"""The stamp of a CPU: what its kernels are chosen by."""

from __future__ import annotations

import pytest

from tidemill.serving.bundles.device import cpu_stamp, device_stamp

INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 207
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse4_1 avx fma avx2 avx512f avx512bw avx512_vnni

processor\t: 1
vendor_id\t: another
"""
ARM = """\
processor\t: 0
Features\t: fp asimd sve bf16
CPU implementer\t: 0x41
CPU variant\t: 0x1
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("machine", "info", "threads", "expected"),
    [
        ("x86_64", INTEL, 4, "CPU x86_64 GenuineIntel 6/207 avx512_vnni, 4 threads"),
        ("aarch64", ARM, 1, "CPU aarch64 0x41 0xd40/0x1 sve, 1 thread"),
        ("arm64", "", 8, "CPU arm64, 8 threads"),
        ("x86_64", "nothing\nthat: is known", 2, "CPU x86_64, 2 threads"),
    ],
)
def test_a_cpu_is_named_by_what_kernels_are_chosen_by(
    machine: str, info: str, threads: int, expected: str
) -> None:
    assert cpu_stamp(machine, info, threads, {"HOME": "/"}) == expected


@pytest.mark.parametrize("hidden", ["avx512_vnni", "avx512_vnni avx512bw avx512f", "GenuineIntel"])
def test_a_machine_that_hides_instructions_is_another_one(hidden: str) -> None:
    info = INTEL
    for word in hidden.split():
        info = info.replace(f" {word}", "")
    assert cpu_stamp("x86_64", info, 2, {}) != cpu_stamp("x86_64", INTEL, 2, {})


def test_variables_that_choose_kernels_are_in_it() -> None:
    chosen = {"TF_ENABLE_ONEDNN_OPTS": "0", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert cpu_stamp("x86_64", INTEL, 2, chosen).endswith(
        "2 threads, TF_ENABLE_ONEDNN_OPTS=0, ONEDNN_MAX_CPU_ISA=AVX2"
    )


def test_this_machine_has_one() -> None:
    assert device_stamp() == device_stamp()
