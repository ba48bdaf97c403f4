"""Beam engines: chosen by name, started, checked after the run.

The only place that makes PipelineOptions.
"""
