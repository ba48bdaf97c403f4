"""Messages of a topic to raw rows, in the shape that the readers of files give (`decoding`)."""
