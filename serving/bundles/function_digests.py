"""Digests of what TensorFlow's functions compute, whatever their nodes and functions are called.

It promises: two functions with equal digests compute the same, and a function that was traced again
has the same digest. TensorFlow's own digests promise neither. ``fingerprint.pb`` hashes the graph
without its function library, which is all of a TF2 model, and includes names made from temporary
paths; ``FunctionDefHash`` includes the counters in the names of functions.

A digest covers all nodes of a function: op, device, attributes, data inputs in order, control
inputs as a set. Left out are names (of nodes, arguments and functions) and what `_UNUSED` lists.
Everything else counts, known or not: an attribute that TensorFlow adds may make equal functions
unequal, never unequal ones equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tidemill.features.errors import BundleError
from tidemill.serving.bundles.value_digests import (
    digest,
    message_digest,
    number_bytes,
    tensor_digest,
)
from tidemill.serving.models.tensorflow_start import load_tensorflow

_UNUSED: Final = frozenset(
    {
        # The name of an argument, for Python callers; for a captured tensor a counter.
        "_user_specified_name",
        # The gradient's name, with a counter. Scoring computes no gradients.
        "_gradient_op_type",
        "forward_function_name",
        "backward_function_name",
    }
)
"""Attributes that change nothing of what is computed."""
_SHARED_NAME: Final = "shared_name"
_CONTAINER: Final = "container"
_CALL_OPTIONS: Final = "config_proto"
_COLOCATED: Final = "_class"
_COLOCATED_WITH: Final = b"loc:@"


@dataclass(frozen=True)
class _Reference:
    """An input of a node: output ``port`` of a node, or an argument if ``node`` is None."""

    node: str | None
    port: bytes


@dataclass(frozen=True)
class _Node:
    proto: Any
    data: tuple[_Reference, ...]
    controls: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.proto.name)

    def needs(self) -> Iterator[str]:
        """Yield the nodes that must run before this one."""
        yield from (reference.node for reference in self.data if reference.node is not None)
        yield from self.controls


class FunctionDigests:
    """The digests of the functions of one library.

    Names of shared resources (``shared_name``) are arbitrary, but say which nodes share one. They
    are numbered in the order in which the calls of `of` meet them, so the order of the calls
    matters.

    Args:
        library: ``GraphDef.library`` of a SavedModel.
    """

    def __init__(self, library: Any) -> None:
        self._functions = {f.signature.name: f for f in library.function}
        self._nodes: dict[str, dict[str, _Node]] = {}
        self._orders: dict[str, list[str]] = {}
        self._sketches: dict[str, bytes] = {}
        self._digests: dict[str, bytes] = {}
        self._open: set[str] = set()
        self._shared: dict[tuple[bytes, bytes], int] = {}

    def of(self, name: str) -> bytes:
        """Return the digest of a function.

        Raises:
            BundleError: The library lacks it or one that it calls, it calls itself, or its nodes
                form a cycle.
        """
        if name not in self._digests:
            self._sketch(name)
            self._digests[name] = self._exact(name)
        return self._digests[name]

    # Nodes have to be put in an order that does not depend on their names. Data inputs are ordered
    # already; control inputs, and nodes that no output needs, are not. The first pass makes a
    # digest of each node from those of its inputs (its sketch), in which names of shared resources
    # are blank, and the second numbers the nodes in the order of outputs, inputs and sketches.

    def _sketch(self, name: str) -> bytes:
        if name in self._sketches:
            return self._sketches[name]
        if name in self._open:
            raise BundleError(
                f"the graph's function {name!r} calls itself, so it has no canonical hash; write "
                "the recursion as a tf.while_loop"
            )
        function = self._function(name)
        self._open.add(name)
        nodes = self._nodes[name] = _parse(function)
        sketches: dict[str, bytes] = {}
        for node_name in _ordered(nodes, nodes, _Node.needs, name):
            node = nodes[node_name]
            inputs = (
                digest(b"" if r.node is None else sketches[r.node], r.port) for r in node.data
            )
            sketches[node_name] = digest(
                self._described(node.proto, self._sketch, _blank),
                *inputs,
                b"controls",
                *sorted(sketches[control] for control in node.controls),
            )
        self._open.remove(name)
        self._sketches[name] = digest(
            *(
                digest(b"" if r.node is None else sketches[r.node], r.port)
                for r in _returned(function)
            ),
            b"all",
            *sorted(sketches.values()),
        )
        self._orders[name] = _numbered(function, nodes, sketches)
        return self._sketches[name]

    def _exact(self, name: str) -> bytes:
        function, nodes, order = self._functions[name], self._nodes[name], self._orders[name]
        number = {node_name: i for i, node_name in enumerate(order)}

        def place(reference: _Reference) -> bytes:
            at = -1 if reference.node is None else number[reference.node]
            return number_bytes(at) + reference.port

        def colocated(value: bytes) -> bytes:
            other = value.removeprefix(_COLOCATED_WITH).decode()
            return number_bytes(number[other]) if other in number else value

        records = []
        for node_name in order:
            node = nodes[node_name]
            records.append(
                digest(
                    self._described(node.proto, self.of, colocated, self._shared_number),
                    *map(place, node.data),
                    b"controls",
                    *(number_bytes(n) for n in sorted(number[c] for c in node.controls)),
                )
            )
        signature = function.signature
        arguments = (self._argument(a) for a in signature.input_arg)
        results = (self._argument(a) for a in signature.output_arg)
        kept = sorted(number[node_name] for node_name in function.control_ret.values())
        return digest(
            digest(*arguments),
            digest(*results),
            digest(*(number_bytes(argument.is_ref) for argument in signature.input_arg)),
            digest(number_bytes(signature.is_stateful), *map(message_digest, signature.attr)),
            self._attributes(function.attr, self.of, _as_it_is),
            digest(*self._argument_attributes(function)),
            digest(*records),
            digest(*map(place, _returned(function))),
            digest(*map(number_bytes, kept)),
        )

    def _function(self, name: str) -> Any:
        try:
            return self._functions[name]
        except KeyError:
            raise BundleError(
                f"the graph calls {name!r}, which its function library lacks, so it has no "
                "canonical hash; train again"
            ) from None

    def _described(
        self,
        node: Any,
        function: Callable[[str], bytes],
        colocated: Callable[[bytes], bytes],
        shared: Callable[[bytes, bytes], bytes] | None = None,
    ) -> bytes:
        """Return the digest of a node without its inputs."""
        attributes = dict(node.attr)
        name = attributes.pop(_SHARED_NAME, None)
        container = attributes.pop(_CONTAINER, None)
        resource = b""
        if name is not None and name.s:
            where = b"" if container is None else container.s
            resource = b"named" if shared is None else shared(where, name.s)
        return digest(
            node.op.encode(),
            node.device.encode(),
            resource,
            self._attributes(attributes, function, colocated),
            message_digest(node.experimental_type),
        )

    def _shared_number(self, container: bytes, name: bytes) -> bytes:
        return number_bytes(self._shared.setdefault((container, name), len(self._shared)))

    def _attributes(
        self,
        attributes: Mapping[str, Any],
        function: Callable[[str], bytes],
        colocated: Callable[[bytes], bytes],
    ) -> bytes:
        parts = []
        for name in sorted(attributes):
            if name in _UNUSED:
                continue
            value = attributes[name]
            if name == _COLOCATED and value.HasField("list"):
                found = digest(*(colocated(other) for other in value.list.s))
            elif name == _CALL_OPTIONS and value.s:
                found = _call_options(value.s)
            else:
                found = self._value(value, function)
            parts += [name.encode(), found]
        return digest(*parts)

    def _value(self, value: Any, function: Callable[[str], bytes]) -> bytes:
        kind = value.WhichOneof("value")
        if kind == "func":
            return self._called(value.func, function)
        if kind == "tensor":
            return digest(b"tensor", tensor_digest(value.tensor))
        if kind == "list" and (value.list.func or value.list.tensor):
            functions = (self._called(called, function) for called in value.list.func)
            return digest(b"list", *functions, *map(tensor_digest, value.list.tensor))
        return message_digest(value)

    def _called(self, called: Any, function: Callable[[str], bytes]) -> bytes:
        return digest(
            b"function", function(called.name), self._attributes(called.attr, function, _as_it_is)
        )

    @staticmethod
    def _argument(argument: Any) -> bytes:
        return message_digest(argument, without=("name", "description"))

    def _argument_attributes(self, function: Any) -> Iterator[bytes]:
        """Yield each argument's attributes; arguments of one resource get one number."""
        ids: dict[int, int] = {}
        for index in range(len(function.signature.input_arg)):
            attributes = function.arg_attr[index].attr if index in function.arg_attr else {}
            yield self._attributes(attributes, self.of, _as_it_is)
            if index in function.resource_arg_unique_id:
                unique = function.resource_arg_unique_id[index]
                yield number_bytes(ids.setdefault(unique, len(ids)))


def _blank(_: bytes) -> bytes:
    return b""


def _as_it_is(value: bytes) -> bytes:
    return value


def _call_options(serialized: bytes) -> bytes:
    """Return the digest of a serialized ConfigProto; its maps are in no fixed order."""
    load_tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import config_pb2

    try:
        return message_digest(config_pb2.ConfigProto.FromString(serialized))
    except DecodeError:  # something else of this name: count its bytes
        return digest(serialized)


def _parse(function: Any) -> dict[str, _Node]:
    arguments = {a.name: i for i, a in enumerate(function.signature.input_arg)}
    names = {node.name for node in function.node_def}
    nodes = {}
    for node in function.node_def:
        data, controls = [], []
        for text in node.input:
            if not text.startswith("^"):
                data.append(_reference(text, arguments))
            elif text[1:] not in arguments:  # an argument is there before any node runs
                controls.append(text[1:])
        needed = {*controls, *(r.node for r in data if r.node is not None)}
        for missing in sorted(needed - names):
            raise BundleError(
                f"the graph's function {function.signature.name!r} has no node {missing!r}, which "
                f"its node {node.name!r} needs; train again"
            )
        nodes[node.name] = _Node(node, tuple(data), tuple(dict.fromkeys(controls)))
    return nodes


def _reference(text: str, arguments: Mapping[str, int]) -> _Reference:
    name, _, port = text.partition(":")
    if name in arguments:
        return _Reference(None, number_bytes(arguments[name]) + port.encode())
    return _Reference(name, port.encode())


def _returned(function: Any) -> Iterator[_Reference]:
    arguments = {a.name: i for i, a in enumerate(function.signature.input_arg)}
    for result in function.signature.output_arg:
        yield _reference(function.ret[result.name], arguments)


def _numbered(
    function: Any, nodes: Mapping[str, _Node], sketches: Mapping[str, bytes]
) -> list[str]:
    """Return the names of all nodes in an order that does not depend on them."""

    def needs(node: _Node) -> Iterator[str]:
        yield from (reference.node for reference in node.data if reference.node is not None)
        yield from sorted(node.controls, key=lambda name: sketches[name])

    roots = [reference.node for reference in _returned(function) if reference.node is not None]
    roots += sorted(function.control_ret.values(), key=lambda name: sketches[name])
    roots += sorted(nodes, key=lambda name: sketches[name])
    return _ordered(nodes, roots, needs, function.signature.name)


def _ordered(
    nodes: Mapping[str, _Node],
    roots: Iterable[str],
    needs: Callable[[_Node], Iterator[str]],
    function: str,
) -> list[str]:
    """Return the names of the roots and of all that they need, each after what it needs."""
    order: list[str] = []
    done: set[str] = set()
    path: dict[str, Iterator[str]] = {}
    for root in roots:
        if root not in done:
            path[root] = needs(nodes[root])
        while path:
            name, waiting = next(reversed(path.items()))
            needed = next((n for n in waiting if n not in done), None)
            if needed is None:
                del path[name]
                done.add(name)
                order.append(name)
            elif needed in path:
                raise BundleError(
                    f"the nodes of the graph's function {function!r} form a cycle at {needed!r}, "
                    "so it has no canonical hash; use TF2's control flow (tf.while_loop, tf.cond)"
                )
            else:
                path[needed] = needs(nodes[needed])
    return order
