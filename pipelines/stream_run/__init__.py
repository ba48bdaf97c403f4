"""One run of the stream: start, replay, and a count that compares requests with predictions."""
