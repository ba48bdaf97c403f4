"""Imported by what forks processes: they have the compiled kernel, which takes most of a second."""

from tidemill.features.kernel.compilation import load_kernel

load_kernel()
