"""Digests of values."""

from __future__ import annotations

import numpy as np

from tidemill.serving.bundles.value_digests import array_digest, tensor_digest


def test_arrays_count_bit_for_bit() -> None:
    zero = array_digest(np.array([0.0, 1.0]))
    assert array_digest(np.array([-0.0, 1.0])) != zero
    assert array_digest(np.array([[0.0, 1.0]])) != zero
    assert array_digest(np.array([0.0, 1.0], np.float32)) != zero
    assert array_digest(np.array([0.0, 1.0])) == zero
    texts = [np.array(words, object) for words in ([b"a", b"bc"], [b"ab", b"c"], [b"a", b"bc"])]
    assert array_digest(texts[0]) == array_digest(texts[2]) != array_digest(texts[1])


def test_equal_tensors_count_as_equal_however_they_are_written() -> None:
    import tensorflow as tf

    whole = tf.make_tensor_proto(np.full(4, 2.0, np.float32))
    short = tf.make_tensor_proto(2.0, shape=(4,), dtype=tf.float32)
    assert whole.SerializeToString() != short.SerializeToString()
    assert tensor_digest(whole) == tensor_digest(short)
