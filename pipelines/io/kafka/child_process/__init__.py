"""Consumers and producers that run in a process of their own, behind the port to Kafka.

A client library in Python costs tens of microseconds a message, and each of them holds the
interpreter's lock: the pipeline, which needs it too, waits. So the library runs beside it:

* `library.InChildProcess` is a client like any other; askers stay in this process.
* `process.ChildProcess` starts the process, connects to it, and ends it; `child` is what runs
  there. The process holds nothing that its parent could not make again.
* `consumer` and `producer` have both ends of a connection, in one file each.
"""
