"""The kernel: it computes every feature value, in batch and in the stream.

numba compiles its functions and keeps them on disk (`kernel.code_cache`); `kernel.compilation`
compiles all of them beforehand, in half the time that the first calls would take.
"""
