"""The canonical hash of a SavedModel: what its functions compute, not how its files are written.

It promises: equal hashes mean equal computations, and a model that was built again from equal
inputs has an equal hash, in any process and folder. The hash covers, for each function that is
named:

* its signature: names, dtypes and shapes of its inputs and outputs;
* the nodes of all functions that it calls (`function_digests`);
* what it captures, in order: values of variables and constants, bit for bit; lookup tables by the
  functions that make and fill them, and the content of the files that these read.

It does not cover names of nodes, functions and variables, paths, debug information, or the version
of TensorFlow. Whatever can hold a value and is of a kind unknown here is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import BundleError
from tidemill.serving.bundles.function_digests import FunctionDigests
from tidemill.serving.bundles.value_digests import (
    array_digest,
    digest,
    message_digest,
    number_bytes,
    tensor_digest,
)
from tidemill.serving.files.file_digest import file_sha256
from tidemill.serving.files.read_files import reading
from tidemill.serving.models.tensorflow_start import load_tensorflow

_REMEDY: Final = "run `tidemill train` again"
_VALUES: Final = "variables/variables"
_OBJECTS_OF_VALUES: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SIGNATURES: Final = "signatures/"
_TABLE_FUNCTIONS: Final = ("_create_resource", "_initialize")


def graph_hash(directory: Path, functions: Sequence[str]) -> str:
    """Return the canonical hash of functions of a SavedModel.

    Args:
        directory: The SavedModel, as TensorFlow 2 writes it.
        functions: The attributes that hold them, such as ``transform_fn`` or
            ``signatures/serving_default``, in the order in which they are hashed.

    Returns:
        A SHA-256, 64 hexadecimal digits.

    Raises:
        BundleError: The model has no such function, or holds something that cannot be hashed.
        DamagedFile: A file of the model cannot be parsed.
    """
    load_tensorflow()
    return _SavedModel(directory).digest(functions).hex()


class _SavedModel:
    """The parsed files of a SavedModel, and the objects that the hashed functions have captured.

    Objects are numbered in the order in which functions capture them. A function refers to them by
    number, because a table's initializer captures the table itself.
    """

    def __init__(self, directory: Path) -> None:
        from tensorflow.core.protobuf import saved_model_pb2

        self._directory = directory
        path = directory / "saved_model.pb"
        with reading(path, _REMEDY):
            parsed = _parse(saved_model_pb2.SavedModel, path.read_bytes())
        if len(parsed.meta_graphs) != 1 or not parsed.meta_graphs[0].object_graph_def.nodes:
            raise BundleError(f"{path} is not a SavedModel of TensorFlow 2; {_REMEDY}")
        self._graph = parsed.meta_graphs[0]
        self._objects = self._graph.object_graph_def
        self._functions = FunctionDigests(self._graph.graph_def.library)
        self._constants = {node.name: node for node in self._graph.graph_def.node}
        self._values = _Values(directory / _VALUES, self._objects)
        self._numbers: dict[int, int] = {}

    def digest(self, functions: Sequence[str]) -> bytes:
        parts = [self._entry(name) for name in functions]
        # Loading initializes every table of the model, captured or not.
        for index, node in enumerate(self._objects.nodes):
            if node.WhichOneof("kind") == "resource":
                self._number(index)
        done = 0
        while done < len(self._numbers):
            index = list(self._numbers)[done]
            parts.append(self._object(index))
            done += 1
        return digest(*parts)

    def _entry(self, name: str) -> bytes:
        node = self._objects.nodes[self._find(0, name)]
        if node.WhichOneof("kind") != "bare_concrete_function":
            raise BundleError(
                f"{name!r} in {self._directory} is no function of one signature, found "
                f"{node.WhichOneof('kind')}; {_REMEDY}"
            )
        function = node.bare_concrete_function
        words = [word.encode() for word in function.argument_keywords]
        parts = [
            digest(*words, number_bytes(function.allowed_positional_arguments)),
            self._concrete(function.concrete_function_name),
        ]
        if name.startswith(_SIGNATURES):
            parts.append(self._signature(name.removeprefix(_SIGNATURES)))
        return digest(*parts)

    def _signature(self, name: str) -> bytes:
        signature = self._in(self._graph.signature_def, name, "signature")
        parts = [signature.method_name.encode()]
        for tensors in (signature.inputs, signature.outputs):
            for key in sorted(tensors):
                parts += [key.encode(), message_digest(tensors[key], without=("name",))]
            parts.append(b"end")
        for key in sorted(signature.defaults):
            parts += [key.encode(), message_digest(signature.defaults[key])]
        return digest(*parts)

    def _concrete(self, name: str) -> bytes:
        """Return the digest of a function and of which objects it has captured."""
        saved = self._in(self._objects.concrete_functions, name, "function")
        return digest(
            self._functions.of(name),
            message_digest(saved.canonicalized_input_signature),
            message_digest(saved.output_signature),
            *(number_bytes(self._number(index)) for index in saved.bound_inputs),
        )

    def _number(self, index: int) -> int:
        return self._numbers.setdefault(index, len(self._numbers))

    def _object(self, index: int) -> bytes:
        node = self._objects.nodes[index]
        kind = node.WhichOneof("kind")
        parts = [str(kind).encode()]
        if kind == "variable":
            variable = node.variable
            parts += [number_bytes(variable.dtype), message_digest(variable.shape)]
            # The copies of a variable on several devices: count all that is said about them.
            copies = variable.experimental_distributed_variable_components
            parts += map(message_digest, copies)
            if not self._values.has(index):
                raise BundleError(
                    f"{self._directory}: variable {variable.name!r} has no saved value; {_REMEDY}"
                )
        elif kind == "constant":
            operation = self._in(self._constants, node.constant.operation, "constant")
            parts.append(tensor_digest(self._in(operation.attr, "value", "constant").tensor))
        elif kind == "asset":
            parts.append(self._asset(node.asset.asset_file_def_index))
        elif kind == "resource":
            parts.append(node.resource.device.encode())
            for name in _TABLE_FUNCTIONS:
                found = self._objects.nodes[self._find(index, name)].function.concrete_functions
                if not found:
                    raise BundleError(f"{self._directory}: {name!r} is no function; {_REMEDY}")
                parts += [name.encode(), *map(self._concrete, found)]
        else:
            raise BundleError(
                f"a function in {self._directory} has captured an object of the kind {kind}, which "
                "has no canonical hash; use variables, constants, and lookup tables"
            )
        return digest(*parts, *self._values.of(index))

    def _in(self, found: Mapping[str, Any], name: str, what: str) -> Any:
        # A map of a protocol buffer would make the entry that it lacks.
        if name not in found:
            raise BundleError(f"{self._directory} lacks the {what} {name!r}; {_REMEDY}")
        return found[name]

    def _asset(self, index: int) -> bytes:
        if index >= len(self._graph.asset_file_def):
            raise BundleError(f"{self._directory} lacks the asset {index}; {_REMEDY}")
        path = self._directory / "assets" / self._graph.asset_file_def[index].filename
        with reading(path, _REMEDY):
            return bytes.fromhex(file_sha256(path))

    def _find(self, index: int, path: str) -> int:
        """Return the object at a path of attributes below another object."""
        for name in path.split("/"):
            children = {c.local_name: c.node_id for c in self._objects.nodes[index].children}
            if name not in children:
                raise BundleError(
                    f"{self._directory} has no {path!r}: found {', '.join(sorted(children))}; "
                    f"{_REMEDY}"
                )
            index = children[name]
        return index


class _Values:
    """The saved values of the objects of a SavedModel.

    Values and objects have a graph of objects each, with numbers of its own; an object is found by
    the path of attributes that leads to it, as TensorFlow finds it.
    """

    def __init__(self, prefix: Path, objects: Any) -> None:
        tf = load_tensorflow()
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        index = prefix.with_name(f"{prefix.name}.index")
        self._found: dict[int, Any] = {}
        with reading(index, _REMEDY):
            try:
                self._reader = tf.train.load_checkpoint(str(prefix))
                graph = self._reader.get_tensor(_OBJECTS_OF_VALUES)
            except tf.errors.OpError as error:
                raise ValueError(error.message) from error
            self._names = sorted(self._reader.get_variable_to_shape_map())
            saved = _parse(trackable_object_graph_pb2.TrackableObjectGraph, graph)
        waiting = [(0, 0)]
        while waiting:
            ours, theirs = waiting.pop()
            if ours in self._found:
                continue
            self._found[ours] = saved.nodes[theirs]
            children = {c.local_name: c.node_id for c in saved.nodes[theirs].children}
            waiting += [
                (child.node_id, children[child.local_name])
                for child in objects.nodes[ours].children
                if child.local_name in children
            ]

    def has(self, index: int) -> bool:
        """Return whether an object has saved values."""
        return index in self._found and bool(self._found[index].attributes)

    def of(self, index: int) -> Iterator[bytes]:
        """Yield the names and digests of an object's saved values."""
        if index not in self._found:
            return
        node = self._found[index]
        if node.HasField("registered_saver"):
            raise BundleError(
                f"the saved values of an object belong to {node.registered_saver.name!r}, which "
                "has no canonical hash; use variables, constants, and lookup tables"
            )
        for attribute in sorted(node.attributes, key=lambda a: str(a.name)):
            yield attribute.name.encode()
            # A mutable table has two tensors, whose names begin with this key.
            key = attribute.checkpoint_key
            tensors = [name for name in self._names if name.startswith(key)]
            if not tensors:
                raise BundleError(f"the model has no saved value of {key!r}; {_REMEDY}")
            for name in tensors:
                yield name.removeprefix(key).encode()
                yield array_digest(self._reader.get_tensor(name))


def _parse(kind: Any, content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise ValueError(str(error)) from error
