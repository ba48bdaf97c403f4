"""Benchmarks: what the kernel and the pipelines cost, beside what others cost.

``python -m benchmarks`` runs them all, prints one table and writes ``benchmarks/results``.
"""
