"""The files that a stream has written, compared with what its polls give."""
