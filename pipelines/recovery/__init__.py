"""Start, stop, go on, repair: states in files, segments, the release log, republication."""
