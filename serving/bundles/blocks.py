"""The four tensors that a bundle's model takes, and how columns become them.

There are four blocks rather than one tensor per column, because the cost of a call grows with the
number of tensors:

=========  =======  =======================  ==================================================
tensor     dtype    shape                    holds
=========  =======  =======================  ==================================================
float64    float64  ``(rows, floats)``       the float64 inputs; NaN is null
int64      int64    ``(rows, integers)``     the int64 and bool inputs; 0 for a null
null       bool     ``(rows, integers)``     which of those are null (float64 with NaN would not
                                             hold every int64)
text       string   ``(rows, texts)``        the texts; ``""`` is null
=========  =======  =======================  ==================================================

Within a block the columns are in the order of the model's inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import ARROW_TYPES, BOOL, FLOAT64, STRING
from tidemill.features.models.preprocessing import ModelInput, input_column
from tidemill.serving.models.feed import Rejection, aligned, padded_tensor, tensor_of

UInt8Array = npt.NDArray[np.uint8]
_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Blocks:
    """The inputs of some rows.

    Attributes:
        float64: float64, ``(rows, floats)``.
        int64: int64, ``(rows, integers)``.
        null: bool, ``(rows, integers)``.
        text: str objects, ``(rows, texts)``.
    """

    float64: _Array
    int64: _Array
    null: _Array
    text: _Array

    @classmethod
    def empty(cls, layout: Layout, rows: int) -> Blocks:
        """Return blocks of a layout without values."""
        return cls(
            aligned((rows, len(layout.floats)), np.float64),
            aligned((rows, len(layout.integers)), np.int64),
            np.zeros((rows, len(layout.integers)), np.bool_),
            np.empty((rows, len(layout.texts)), np.object_),
        )

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return len(self.float64)

    def slice(self, start: int, rows: int) -> Blocks:
        """Return some rows, without copying them."""
        stop = start + rows
        return Blocks(*(one[start:stop] for one in self._all()))

    def take(self, places: Any) -> Blocks:
        """Return the rows at some places."""
        index = np.asarray(places)
        return Blocks(*(one[index] for one in self._all()))

    def tensors(self, rows: int) -> dict[str, Any]:
        """Return the tensors, padded to ``rows`` rows by repeating the last one."""
        has_null, width = self.null.any(), self.null.shape[1]
        return {
            "float64": padded_tensor(self.float64, rows),
            "int64": padded_tensor(self.int64, rows),
            "null": padded_tensor(self.null, rows) if has_null else _no_null(rows, width),
            "text": padded_tensor(self.text, rows),
        }

    def _all(self) -> tuple[_Array, ...]:
        return self.float64, self.int64, self.null, self.text


@functools.lru_cache(maxsize=64)
def _no_null(rows: int, width: int) -> Any:
    """Return the tensor of a block without nulls, as most are."""
    return tensor_of(np.zeros((rows, width), np.bool_))


class _NullsAreValues:
    """No row is unusable."""

    def unusable(self, rows: Any) -> Collection[Rejection]:
        """Return nothing: nulls are values here."""
        return ()


class BlockFeed(_NullsAreValues):
    """Makes tensors of blocks."""

    def tensors(self, batch: Blocks, rows: int) -> dict[str, Any]:
        """Return the tensors of blocks, padded to ``rows`` rows."""
        return batch.tensors(rows)


@dataclass(frozen=True)
class ColumnFeed(_NullsAreValues):
    """Makes tensors of record batches that have a column for each model input.

    Attributes:
        layout: The blocks.
    """

    layout: Layout

    def tensors(self, batch: pa.RecordBatch, rows: int) -> dict[str, Any]:
        """Return the tensors of a batch, padded to ``rows`` rows.

        Raises:
            InputError: A column is missing or of another type.
        """
        return self.layout.pack(batch).tensors(rows)


@dataclass(frozen=True)
class Layout:
    """The inputs of each block, in the order of its columns."""

    floats: tuple[ModelInput, ...]
    integers: tuple[ModelInput, ...]
    texts: tuple[ModelInput, ...]

    @classmethod
    def of(cls, inputs: Sequence[ModelInput]) -> Layout:
        """Return the layout of a model's inputs."""
        return cls(
            tuple(i for i in inputs if i.dtype == FLOAT64),
            tuple(i for i in inputs if i.dtype not in (FLOAT64, STRING)),
            tuple(i for i in inputs if i.dtype == STRING),
        )

    def pack(self, columns: pa.RecordBatch) -> Blocks:
        """Pack columns into blocks.

        Raises:
            InputError: A column is missing or of another type.
        """
        blocks = Blocks.empty(self, columns.num_rows)
        for j, wanted in enumerate(self.floats):
            _set_float(blocks, j, input_column(columns, wanted))
        for j, wanted in enumerate(self.integers):
            _set_integer(blocks, j, input_column(columns, wanted))
        for j, wanted in enumerate(self.texts):
            _set_text(blocks, j, input_column(columns, wanted))
        return blocks

    def zeros(self) -> pa.RecordBatch:
        """Return columns with a row of zeros and empty texts, to warm a model with."""
        kinds = {
            one.name: ARROW_TYPES[one.dtype] for one in (*self.floats, *self.integers, *self.texts)
        }
        return pa.RecordBatch.from_pydict(
            {
                name: pa.array([""] if pa.types.is_string(kind) else pa.array([0]).cast(kind))
                for name, kind in kinds.items()
            }
        )


class MatrixPacking:
    """Packs blocks of inputs of which most are columns of a matrix of 64-bit patterns.

    It gives what `Layout.pack` gives for the same values as columns, without making these.

    Args:
        layout: The blocks.
        columns: The names of the matrix's columns, in order; the inputs that are not among them
            come as columns.
    """

    def __init__(self, layout: Layout, columns: Sequence[str]) -> None:
        self._layout = layout
        place = {name: index for index, name in enumerate(columns)}

        def part(inputs: Sequence[ModelInput]) -> tuple[_Places, _Places]:
            mine = [j for j, one in enumerate(inputs) if one.name in place]
            return _places(mine), _places([place[inputs[j].name] for j in mine])

        self._floats, self._integers = part(layout.floats), part(layout.integers)
        self._bools = [
            j for j, one in enumerate(layout.integers) if one.dtype == BOOL and one.name in place
        ]
        self._own = [
            [(j, one) for j, one in enumerate(inputs) if one.name not in place]
            for inputs in (layout.floats, layout.integers, layout.texts)
        ]

    def pack(self, words: Int64Array, nulls: UInt8Array, columns: Mapping[str, pa.Array]) -> Blocks:
        """Pack rows.

        Args:
            words: int64 patterns, ``(rows, columns)``: a bool is 0 or 1.
            nulls: uint8, ``(rows, columns)``: 1 = null.
            columns: The other inputs by name, in their declared types.
        """
        blocks = Blocks.empty(self._layout, len(words))
        to, source = self._floats
        blocks.float64[:, to] = np.where(
            nulls[:, source], np.nan, words.view(np.float64)[:, source]
        )
        to, source = self._integers
        blocks.null[:, to] = nulls[:, source]
        blocks.int64[:, to] = np.where(nulls[:, source], 0, words[:, source])
        for j in self._bools:
            blocks.int64[:, j] = blocks.int64[:, j] != 0
        for own, put in zip(self._own, (_set_float, _set_integer, _set_text), strict=True):
            for j, wanted in own:
                put(blocks, j, columns[wanted.name])
        return blocks


_Places = slice | npt.NDArray[np.int64]


def _places(columns: Sequence[int]) -> _Places:
    """Return columns as a slice if they follow each other: it takes a tenth of the time."""
    if columns and [*columns] == [*range(columns[0], columns[-1] + 1)]:
        return slice(columns[0], columns[-1] + 1)
    return np.array(columns, np.int64)


def _set_float(blocks: Blocks, j: int, column: pa.Array) -> None:
    blocks.float64[:, j] = column.to_numpy(zero_copy_only=False)


def _set_integer(blocks: Blocks, j: int, column: pa.Array) -> None:
    if column.null_count:
        blocks.null[:, j] = pc.is_null(column).to_numpy(zero_copy_only=False)
        column = pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0)
    blocks.int64[:, j] = column.to_numpy(zero_copy_only=False)


def _set_text(blocks: Blocks, j: int, column: pa.Array) -> None:
    if column.null_count:
        column = pc.fill_null(column, "")
    blocks.text[:, j] = column.to_numpy(zero_copy_only=False)
