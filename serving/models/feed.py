"""Columns of a batch as tensors: padded to a shape, without an object for each number.

A number is never changed on the way: a column goes into a tensor whose dtype holds all its values
(int32 into int64 or float64). Whoever wants float64 rounded to float32 says so.

Tensors share memory with the arrays that are made here, where TensorFlow allows it: it aborts the
process if memory that it is given is not aligned to 64 bytes, so nothing else is given to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.errors import InputError
from tidemill.serving.models.signature import Form, Input, TensorSpec
from tidemill.serving.models.tensorflow_start import load_tensorflow

ALIGNMENT: Final = 64
"""Bytes to which TensorFlow wants memory aligned that it does not own."""

Array = npt.NDArray[Any]
_TEXT: Final = "string"
_MANTISSA: Final = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""Bits of a whole number that each float dtype holds exactly."""


class Rejection(NamedTuple):
    """A row that has no outputs.

    Attributes:
        row: Its place in the batch.
        reason: `NULL`, `NOT_A_NUMBER`, or what a call failed with.
        message: A sentence.
    """

    row: int
    reason: str
    message: str


NULL: Final = "null"
"""A row is null where the signature takes a dense tensor, or has a null among its elements."""
NOT_A_NUMBER: Final = "not_a_number"
"""A row has NaN where it may not."""


@dataclass(frozen=True)
class Feed:
    """Makes tensors of the batches of a schema.

    Attributes:
        inputs: The inputs of the signature, as the schema has them (`Signature.bind`).
        round_numbers: Whether numbers may be rounded to a narrower float.
        no_nan: The inputs that must not be NaN.
    """

    inputs: Sequence[Input]
    round_numbers: bool = False
    no_nan: Collection[str] = field(default=())

    def unusable(self, batch: pa.RecordBatch) -> list[Rejection]:
        """Return the rows that cannot be inputs: a null, or NaN where it may not be.

        Raises:
            InputError: A column has a type that the signature does not take.
        """
        found: list[Rejection] = []
        for one in self.inputs:
            column = _column(batch, one.name)
            rows = _null_rows(column)
            said = f"the column {one.name!r} is null, or has a null, and the signature takes none"
            found += [Rejection(int(row), NULL, said) for row in rows]
            if one.name in self.no_nan and one.form is Form.DENSE and not _lists(column):
                said = f"the column {one.name!r} is NaN"
                found += [Rejection(int(row), NOT_A_NUMBER, said) for row in _nan_rows(column)]
        first: dict[int, Rejection] = {}
        for one_found in found:
            first.setdefault(one_found.row, one_found)
        return [first[row] for row in sorted(first)]

    def tensors(self, batch: pa.RecordBatch, rows: int) -> dict[str, Any]:
        """Return the tensors of a batch, padded to ``rows`` rows by repeating the last one.

        Args:
            batch: At least one row, none of them unusable.
            rows: As many rows as the batch has, or more.

        Raises:
            InputError: A column has a type, or lists a length, that the signature does not take.
        """
        out: dict[str, Any] = {}
        for one in self.inputs:
            out |= _MAKERS[one.form](self, one, _column(batch, one.name), rows)
        return out

    def _dense(self, one: Input, column: pa.Array, rows: int) -> dict[str, Any]:
        spec, filled = one.values, len(column)
        values, sizes = _unnested(one.name, column)
        if spec.shape is not None:
            if not sizes and len(spec.shape) == 2 and spec.shape[1] in (1, None):
                sizes = (1,)
            _check_shape(one.name, column.type, spec, sizes)
        found = self._values(one.name, values, spec).reshape((filled, *sizes))
        return {spec.name: padded_tensor(found, rows)}

    def _ragged(self, one: Input, column: pa.Array, rows: int) -> dict[str, Any]:
        column = _padded(column, rows)
        out: dict[str, Any] = {}
        for spec in one.tensors[1:]:
            column, offsets = _elements(column)
            out[spec.name] = tensor_of(offsets.astype(spec.dtype))
        values, sizes = _unnested(one.name, column)
        if one.values.shape is not None:
            _check_shape(one.name, column.type, one.values, sizes)
        found = self._values(one.name, values, one.values)
        return {one.values.name: tensor_of(found.reshape((len(column), *sizes))), **out}

    def _sparse(self, one: Input, column: pa.Array, rows: int) -> dict[str, Any]:
        indices, values, shape = one.tensors
        column = _padded(column, rows)
        items, offsets = _elements(column)
        begin = column.offsets[0].as_py() if len(column) else 0
        keys = column.keys.slice(begin, len(items)).to_numpy(zero_copy_only=False)
        of = np.repeat(np.arange(rows), np.diff(offsets))
        order = np.lexsort((keys, of))
        keys, of = keys[order], of[order]
        if len(keys) and (keys.min() < 0 or ((np.diff(of) == 0) & (np.diff(keys) == 0)).any()):
            raise InputError(
                f"the column {one.name!r} has a negative index, or one twice in a row of the batch"
            )
        width = int(keys.max(initial=-1)) + 1
        found = self._values(one.name, items, values)[order]
        return {
            indices.name: tensor_of(np.stack([of, keys], axis=1).astype(np.int64)),
            values.name: tensor_of(found),
            shape.name: tensor_of(np.array([rows, width], np.int64)),
        }

    def _values(self, name: str, values: pa.Array, spec: TensorSpec) -> Array:
        """Return values without nulls as an array of a tensor's dtype, ``(len(values),)``."""
        kind = values.type
        if spec.dtype == _TEXT:
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                values = values.cast(pa.large_binary() if kind != pa.string() else pa.binary())
            elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                raise _wrong_type(name, kind, spec)
            return np.asarray(values.to_numpy(zero_copy_only=False), np.object_)
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise _wrong_type(name, kind, spec)
        dtype = load_tensorflow().as_dtype(spec.dtype).as_numpy_dtype
        if not (_holds(kind, spec.dtype) or (self.round_numbers and spec.dtype in _MANTISSA)):
            raise _wrong_type(name, kind, spec)
        found = values.to_numpy(zero_copy_only=False)
        return np.asarray(found).astype(dtype, copy=False)


_MAKERS: Final[Mapping[Form, Callable[[Feed, Input, pa.Array, int], dict[str, Any]]]] = {
    Form.DENSE: Feed._dense,
    Form.RAGGED: Feed._ragged,
    Form.SPARSE: Feed._sparse,
}


def aligned(shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """Return an empty array whose memory is aligned to `ALIGNMENT` bytes."""
    kind = np.dtype(dtype)
    if kind == np.object_:
        return np.empty(shape, kind)
    size = math.prod(shape) * kind.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind).reshape(tuple(shape))


def tensor_of(array: Array) -> Any:
    """Return a tensor of an array: of the same memory if TensorFlow can take it, else a copy."""
    tf = load_tensorflow()
    if (
        array.dtype.kind in "iuf"
        and array.size
        and array.flags.c_contiguous
        and array.flags.writeable
        and array.ctypes.data % ALIGNMENT == 0
    ):
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.constant(array, tf.string if array.dtype == np.object_ else None)


def padded_tensor(array: Array, rows: int) -> Any:
    """Return the tensor of an array, padded to ``rows`` rows by repeating the last one."""
    filled = len(array)
    if filled < rows:
        padded = aligned((rows, *array.shape[1:]), array.dtype)
        padded[:filled] = array
        padded[filled:] = array[filled - 1]
        array = padded
    return tensor_of(array)


def _holds(kind: pa.DataType, dtype: str) -> bool:
    """Tell whether a tensor's dtype holds all values of a type."""
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_floating(kind):
        width = _MANTISSA.get(dtype, 0)
        return dtype != "bfloat16" and {16: 11, 32: 24, 64: 53}[kind.bit_width] <= width
    signed = pa.types.is_signed_integer(kind)
    bits = kind.bit_width - signed
    if dtype in _MANTISSA:
        return int(bits) <= _MANTISSA[dtype]
    if not dtype.lstrip("u").startswith("int"):
        return False
    unsigned = dtype.startswith("u")
    width = int(dtype.removeprefix("u").removeprefix("int"))
    return bool(bits <= width - (not unsigned) and not (signed and unsigned))


def _wrong_type(name: str, kind: pa.DataType, spec: TensorSpec) -> InputError:
    hint = ""
    if spec.dtype in _MANTISSA and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        hint = "; round_numbers=True lets numbers be rounded"
    return InputError(
        f"the column {name!r} is {kind}, and the signature takes {spec.describe()}{hint}"
    )


def _check_shape(name: str, kind: pa.DataType, spec: TensorSpec, sizes: Sequence[int]) -> None:
    assert spec.shape is not None
    wanted = spec.shape[1:]
    if len(wanted) != len(sizes) or any(
        size not in (found, None) for size, found in zip(wanted, sizes, strict=True)
    ):
        shape = ", ".join(["rows", *map(str, sizes)]) + ("," if not sizes else "")
        raise InputError(
            f"the column {name!r} is {kind}, a tensor of shape ({shape}), and the signature takes "
            f"{spec.describe()}"
        )


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _lists(column: pa.Array) -> bool:
    kind = column.type
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_map(kind)
    )


def _null_rows(column: pa.Array) -> Array:
    """Return the rows of a column that are null, or have a null in them, ascending."""
    found = np.zeros(len(column), np.bool_)
    if column.null_count:
        found |= column.is_null().to_numpy(zero_copy_only=False)
    if not _lists(column):
        return np.flatnonzero(found)
    for inner, of in _levels(column):
        if inner.null_count:
            bad = inner.is_null().to_numpy(zero_copy_only=False)
            found[of[bad]] = True
    return np.flatnonzero(found)


def _levels(column: pa.Array) -> Iterator[tuple[pa.Array, Array]]:
    """Yield the elements of each level of nested lists, and the row of each element."""
    of = np.arange(len(column))
    while _lists(column):
        column, offsets = _elements(column)
        of = np.repeat(of, np.diff(offsets))
        yield column, of


def _elements(column: pa.Array) -> tuple[pa.Array, Array]:
    """Return the elements of lists or maps, and where each row's begin and end, from 0 on."""
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        offsets = np.arange(len(column) + 1) * size
        return column.values.slice(column.offset * size, len(column) * size), offsets
    offsets = column.offsets.to_numpy(zero_copy_only=False)
    values = column.items if pa.types.is_map(column.type) else column.values
    return values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]


def _nan_rows(column: pa.Array) -> Array:
    if not pa.types.is_floating(column.type):
        return np.zeros(0, np.int64)
    found = pc.is_nan(column).fill_null(False).to_numpy(zero_copy_only=False)
    return np.flatnonzero(found)


def _unnested(name: str, column: pa.Array) -> tuple[pa.Array, tuple[int, ...]]:
    """Return the values of fixed-size lists, or of lists of one length, and the lists' sizes."""
    sizes: list[int] = []
    while _lists(column):
        kind = column.type
        if pa.types.is_fixed_size_list(kind):
            sizes.append(kind.list_size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
            if len(lengths) > 1:
                raise InputError(
                    f"the column {name!r} has lists of {min(lengths)} to {max(lengths)} elements, "
                    "and the signature takes a dense tensor: all must have one length"
                )
            sizes.append(lengths[0] if lengths else 0)
        else:
            raise InputError(f"the column {name!r} is {kind}, which is no dense tensor")
        column, _ = _elements(column)
    return column, tuple(sizes)


def _padded(column: pa.Array, rows: int) -> pa.Array:
    """Return a column with its last row repeated."""
    filled = len(column)
    if filled == rows:
        return column
    return column.take(pa.array(np.minimum(np.arange(rows), filled - 1)))
