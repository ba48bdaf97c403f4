"""Messages of a topic become raw rows, in the shape that the readers of files give.

`decoders.decoder` makes the decoder of a format, `decoding` says what all of them promise.
"""
