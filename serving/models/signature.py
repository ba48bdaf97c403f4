"""What a signature of a SavedModel takes and gives, and which columns of a batch are its inputs.

A signature that was loaded knows its inputs as flat tensors by name. TensorFlow flattens a ragged
input ``x`` of ragged rank ``n`` to its values ``x`` and its row splits ``x_1`` to ``x_n`` (the
outer ones first), and a sparse input to its indices ``x``, values ``x_1`` and shape ``x_2``
(tensorflow/python/saved_model/signature_serialization.py). Nothing in a SavedModel tells ``x``
and ``x_1`` from two dense inputs, so the type of the column ``x`` does: a list is ragged, a map
from int64 is sparse, anything else is dense.

==================  ==============================================================================
column              tensor
==================  ==============================================================================
number, bool        dense ``(rows,)``; ``(rows, 1)`` if the signature asks for that
string, binary      string, likewise
fixed-size list     dense ``(rows, k)``; of fixed-size lists ``(rows, k, m)``
list                ragged, with a ragged dimension for each list; dense ``(rows, k)`` if the
                    signature has no row splits for it, and all lists have the same length
map                 sparse ``(rows, width)``: from index to value
==================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa

from tidemill.features.errors import InputError, ModelError, nearest

Shape = tuple[int | None, ...]
"""The sizes of a tensor's dimensions; None is any."""

_WHOLE: Final = ("int64", "int32")


@dataclass(frozen=True)
class TensorSpec:
    """A flat tensor of a signature.

    Attributes:
        name: Its name.
        dtype: TensorFlow's name of its dtype, such as ``float32``.
        shape: Its shape, with the rows first; None if its rank is not known.
    """

    name: str
    dtype: str
    shape: Shape | None

    def describe(self) -> str:
        """Return its dtype and shape, such as ``float32 (rows, 3)``."""
        if self.shape is None:
            return f"{self.dtype} of any shape"
        sizes = ["any" if size is None else str(size) for size in self.shape]
        if self.shape and self.shape[0] is None:
            sizes[0] = "rows"
        return f"{self.dtype} ({', '.join(sizes)}{',' * (len(sizes) == 1)})"


class Form(StrEnum):
    """How a column becomes tensors."""

    DENSE = "dense"
    RAGGED = "ragged"
    SPARSE = "sparse"


@dataclass(frozen=True)
class Input:
    """An input of a signature, as a batch of some schema has it.

    Attributes:
        name: The column.
        form: How it becomes tensors.
        tensors: They: one, or the values and the row splits, or indices, values and shape.
    """

    name: str
    form: Form
    tensors: tuple[TensorSpec, ...]

    @property
    def values(self) -> TensorSpec:
        """The tensor that holds the column's values."""
        return self.tensors[1 if self.form is Form.SPARSE else 0]


@dataclass(frozen=True)
class Signature:
    """A signature.

    Attributes:
        name: Its name.
        inputs: Its flat inputs, by ascending name: the order of TensorFlow changes between
            processes.
        outputs: The names of its outputs, ascending.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, name: str, function: Any) -> Signature:
        """Return the signature of a concrete function that a SavedModel has as a signature.

        Raises:
            ModelError: It takes inputs that have no name.
        """
        unnamed, named = function.structured_input_signature
        if unnamed or not all(hasattr(spec, "shape") for spec in named.values()):
            raise ModelError(
                f"the signature {name!r} takes inputs that have no name of their own: export the "
                "model with a signature of named tensors"
            )
        inputs = [
            TensorSpec(
                key,
                spec.dtype.name,
                None if spec.shape.rank is None else tuple(spec.shape.as_list()),
            )
            for key, spec in sorted(named.items())
        ]
        found = function.structured_outputs
        return cls(name, tuple(inputs), tuple(sorted(found)) if isinstance(found, Mapping) else ())

    def bind(self, schema: pa.Schema) -> tuple[Input, ...]:
        """Return which columns of a batch are its inputs, and how.

        Args:
            schema: The batch's; further columns are ignored.

        Raises:
            InputError: A column is missing, is there twice, or cannot be what the signature takes.
        """
        flat = {spec.name: spec for spec in self.inputs}
        bound, taken = [], set[str]()
        for name in flat:
            if name in taken:
                continue
            places = schema.get_all_field_indices(name)
            if not places:
                continue
            if len(places) > 1:
                raise InputError(f"the batch has {len(places)} columns {name!r}")
            one = _bind(schema.field(places[0]), flat, schema)
            bound.append(one)
            taken.update(spec.name for spec in one.tensors)
        for name in flat:
            if name not in taken:
                raise InputError(
                    f"the signature {self.name!r} takes {name!r}, {flat[name].describe()}, and the "
                    f"batch has no such column; {nearest(name, schema.names)}"
                )
        return tuple(bound)

    def may_be_parts(self, name: str) -> bool:
        """Tell whether an input may be one part of a ragged or sparse one."""
        names = {spec.name: spec for spec in self.inputs}
        stem, _, number = name.rpartition("_")
        if stem in names and number.isdigit():
            return True
        return f"{name}_1" in names


def _bind(field: pa.Field, flat: Mapping[str, TensorSpec], schema: pa.Schema) -> Input:
    """Return how a column becomes an input."""
    spec = flat[field.name]
    if pa.types.is_map(field.type):
        names = [field.name, f"{field.name}_1", f"{field.name}_2"]
        if not all(name in flat for name in names) or not _is_coordinates(spec):
            raise InputError(
                f"the column {field.name!r} is {field.type}, which can be a sparse input, and the "
                f"signature takes {spec.describe()}"
            )
        if field.type.key_type != pa.int64():
            raise InputError(
                f"the column {field.name!r} is {field.type}: a sparse input is a map from int64"
            )
        return Input(field.name, Form.SPARSE, tuple(flat[name] for name in names))
    if depth := _lists(field.type):
        splits = [flat.get(f"{field.name}_{n}") for n in range(1, depth + 1)]
        found = [one for one in splits if one is not None and _is_splits(one)]
        if len(found) == depth and all(one.name not in schema.names for one in found):
            return Input(field.name, Form.RAGGED, (spec, *found))
    return Input(field.name, Form.DENSE, (spec,))


def _lists(kind: pa.DataType) -> int:
    """Return how many lists of any length a type has around its values."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth


def _is_splits(spec: TensorSpec) -> bool:
    return spec.dtype in _WHOLE and spec.shape is not None and len(spec.shape) == 1


def _is_coordinates(spec: TensorSpec) -> bool:
    return spec.dtype == "int64" and spec.shape is not None and len(spec.shape) == 2
