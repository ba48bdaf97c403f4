"""The proof of a stream that runs: round after round, each of what has become durable since."""
