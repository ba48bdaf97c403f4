"""Tensors that a model returns, as columns.

==================  ==============================================================================
tensor              column
==================  ==============================================================================
``(rows,)``         number, bool; binary for a string (a tensor's strings are bytes)
``(rows, k)``       fixed-size list of ``k``; a further dimension is a list in the list
ragged              list, one for each ragged dimension
sparse, two dims.   map from int64
==================  ==============================================================================

float16 stays float16; bfloat16 becomes float32, which has all its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.errors import ModelError
from tidemill.serving.models.tensorflow_start import load_tensorflow


def schema_of(outputs: Any) -> pa.Schema | None:
    """Return the schema of what `column_of` gives, by ascending name.

    Args:
        outputs: The specifications of a function's outputs, by name.

    Returns:
        None if they do not tell it: of ragged and sparse tensors, and of unknown shapes.
    """
    if not isinstance(outputs, Mapping):
        return None
    tf = load_tensorflow()
    fields = []
    for name in sorted(outputs):
        spec = outputs[name]
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank in (None, 0):
            return None
        sizes = spec.shape.as_list()[1:]
        if None in sizes or spec.dtype.name not in _TYPES:
            return None
        kind = _TYPES[spec.dtype.name]
        for size in reversed(sizes):
            kind = pa.list_(kind, size)
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


_TYPES: Final = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "bfloat16": pa.float32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.binary(),
}


def column_of(name: str, tensor: Any, padded: int, rows: int) -> pa.Array:
    """Return the column of an output, without what was padded.

    Args:
        name: The output.
        tensor: What the model has returned for it.
        padded: The rows of the call.
        rows: The rows to keep, the first ones.

    Raises:
        ModelError: The tensor has not one row for each row of the call, or no column can hold it.
    """
    tf = load_tensorflow()
    if isinstance(tensor, tf.RaggedTensor):
        _check_rows(name, int(tensor.nrows()), padded)
        values = _flat(name, tensor.flat_values.numpy())
        for splits in reversed(tensor.nested_row_splits):
            offsets = splits.numpy()
            values = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
        return values.slice(0, rows)
    if isinstance(tensor, tf.SparseTensor):
        return _map_of(name, tensor, padded, rows)
    found = tensor.numpy()
    if not isinstance(found, np.ndarray) or found.ndim == 0:
        raise ModelError(f"the output {name!r} is one value, and not one a row")
    _check_rows(name, found.shape[0], padded)
    return _flat(name, found[:rows])


def _check_rows(name: str, found: int, padded: int) -> None:
    if found != padded:
        raise ModelError(
            f"the output {name!r} has {found} rows for a call of {padded}: a model that is called "
            "in batches returns one row for each"
        )


def _flat(name: str, values: npt.NDArray[Any]) -> pa.Array:
    """Return an array as a column: fixed-size lists for all dimensions but the first."""
    kind = values.dtype
    if kind.name == "bfloat16":
        values = values.astype(np.float32)
    elif kind.kind not in "biufOS":
        raise ModelError(f"the output {name!r} is {kind.name}, which no column can hold")
    flat = np.ascontiguousarray(values).reshape(-1)
    if kind.kind in "iuf":
        column = _shared(flat)
    else:
        column = pa.array(flat, pa.binary() if kind.kind in "OS" else None)
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _shared(values: npt.NDArray[Any]) -> pa.Array:
    """Return numbers as a column over the same memory, which costs a tenth of `pa.array`."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _map_of(name: str, tensor: Any, padded: int, rows: int) -> pa.Array:
    shape = tensor.dense_shape.numpy()
    if len(shape) != 2:
        raise ModelError(
            f"the output {name!r} is a sparse tensor of {len(shape)} dimensions: return two, or a "
            "dense or ragged tensor"
        )
    _check_rows(name, int(shape[0]), padded)
    indices = tensor.indices.numpy()
    order = np.lexsort((indices[:, 1], indices[:, 0]))
    offsets = np.searchsorted(indices[order, 0], np.arange(padded + 1))
    items = _flat(name, tensor.values.numpy()[order])
    keys = pa.array(indices[order, 1], pa.int64())
    found = pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, items)
    return found.slice(0, rows)
