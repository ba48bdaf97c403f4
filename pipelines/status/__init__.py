"""`tidemill status`: how a stream is, from its records and figures and from the brokers.

It reads, and changes nothing; the stream need not run, and a broker need not answer.
"""
