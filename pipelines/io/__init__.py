"""Sources and sinks: files, the accepted log and its replay, and what a poll is.

Every row has a place (partition, position). Acceptance depends on the log alone.
"""
