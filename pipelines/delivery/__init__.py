"""Predictions and rejected records to topics, exactly once for readers of committed messages.

A message says in its headers which stream made it and of which record; its place is written once,
over engines that repeat bundles, processes that are killed, and brokers that are.
"""
