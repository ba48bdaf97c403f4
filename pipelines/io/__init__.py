"""Input and output of pipelines: files, the log, polls, replay, sinks, bytes between stages."""
