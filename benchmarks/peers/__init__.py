"""The same job beside Tidemill in PyFlink, Spark, Bytewax, Quix Streams and Pathway.

Payments and requests of 20,000 cards come from two topics; every request is answered in a third,
with twelve features: count, sum, mean and maximum of the card's payments in the 10 minutes, the
hour and the day before it. Rows may be out of order by a second, for which an answer waits. Each
program stands in a folder of its own, with the locked packages of its environment.
"""
