"""Digests of values: byte strings, numbers, tensors and protocol buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.features.errors import BundleError
from tidemill.serving.models.tensorflow_start import load_tensorflow


def digest(*parts: bytes) -> bytes:
    """Return the SHA-256 of a sequence of byte strings, each preceded by its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def number_bytes(number: int) -> bytes:
    """Return a number in 8 bytes, for `digest`."""
    return number.to_bytes(8, "little", signed=True)


def array_digest(array: Any) -> bytes:
    """Return the digest of a tensor's dtype, shape and values, bit for bit.

    Args:
        array: A numpy array of any shape; texts are an array of Python's ``bytes``.
    """
    array = np.asarray(array)
    shape = b"".join(map(number_bytes, array.shape))
    if array.dtype.hasobject:
        return digest(b"texts", shape, *array.ravel().tolist())
    if array.dtype.kind == "S":  # numpy pads and strips these, so they hold no texts of TensorFlow
        raise BundleError(f"a tensor of dtype {array.dtype} is not one that TensorFlow gives")
    return digest(array.dtype.name.encode(), shape, array.tobytes())


def tensor_digest(tensor: Any) -> bytes:
    """Return the digest of a TensorProto's values; it has several ways to hold equal ones."""
    tf = load_tensorflow()
    try:
        array = tf.make_ndarray(tensor)
    except TypeError:  # numpy has no such dtype: count the bytes as they are
        return message_digest(tensor)
    return digest(number_bytes(tensor.dtype), array_digest(array))


def message_digest(message: Any, without: Sequence[str] = ()) -> bytes:
    """Return the digest of a protocol buffer, its maps in the order of their keys.

    Args:
        message: The protocol buffer.
        without: Fields that do not count.
    """
    if without:
        counted = type(message)()
        counted.CopyFrom(message)
        for field in without:
            counted.ClearField(field)
        message = counted
    return digest(message.SerializeToString(deterministic=True))
