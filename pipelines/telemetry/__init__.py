"""A stream seen from outside: its figures, its log, its traces.

Every process of a stream counts what it does, and writes its figures to a file twice a second. So
whoever shares the disk can add them up: the process that serves ``/metrics``, and the command
`tidemill status`. A process that does not share it reports the same counts to the engine, as Beam's
metrics.
"""
