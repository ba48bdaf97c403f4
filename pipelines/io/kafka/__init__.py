"""Kafka behind one narrow port: readers of given positions, writers, and errors by name.

`client` is the port. kafka-python is behind it, or confluent-kafka where it is chosen (`choosing`);
both pass the same tests against a real broker.
"""
