"""Start, stop, resume and repair a stream: states in files, segments, the release log."""
