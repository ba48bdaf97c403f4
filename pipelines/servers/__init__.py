"""Servers on this machine, for trials and tests: a Kafka broker and Redis, without Docker or root.

A server keeps its data when it ends, and only its own process is ever ended.
"""
