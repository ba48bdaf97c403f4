"""The one kernel: what computes every feature value, in batch and in the stream.

Its functions are compiled by numba and kept on disk (`kernel.code_cache`); `kernel.compilation`
compiles them all beforehand, in half the time.
"""
