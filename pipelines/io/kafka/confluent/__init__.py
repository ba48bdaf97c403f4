"""confluent-kafka behind the port: faster, with a C library; an extra, ``confluent``."""
