"""A small SavedModel of many kinds of nodes and captures, and changes to the files of one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SIGNATURE = "signatures/serving_default"


@dataclass(frozen=True)
class Model:
    """What the model is built from; each field changes what it computes."""

    weights: Sequence[float] = (0.25, -1.5, 3.0)
    words: Sequence[str] = ("north", "south")
    default_id: int = -1
    constant: float = 2.0
    operation: str = "tanh"
    keep_dims: bool = False
    steps: int = 3
    input_name: str = "x"
    output_name: str = "score"
    dtype: str = "float32"
    seed: int = 5

    def save(self, directory: Path) -> Path:
        """Save it; the file of its words is elsewhere each time."""
        import tensorflow as tf

        words = directory.parent / f"words-{directory.name}.txt"
        words.parent.mkdir(parents=True, exist_ok=True)
        words.write_text("\n".join(self.words) + "\n")
        module = tf.Module()
        module.weights = tf.Variable(self.weights, dtype=self.dtype)
        module.calls = tf.Variable(0, dtype=tf.int64)
        module.table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
            ),
            self.default_id,
        )  # fmt: skip
        captured = tf.constant(self.constant, self.dtype)

        @tf.function
        def inner(x: Any) -> Any:
            for _ in tf.range(self.steps):
                x = x + captured
            return tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)

        def score(x: Any, text: Any) -> dict[str, Any]:
            module.calls.assign_add(1)
            noise = tf.random.stateless_uniform([3], [self.seed, 1], dtype=tf.float32)
            bent = getattr(tf, self.operation)(inner(x) * module.weights)
            found = tf.cast(module.table.lookup(text), self.dtype)
            total = tf.reduce_sum(bent, axis=1, keepdims=self.keep_dims)
            return {
                self.output_name: total - tf.cast(noise[0], self.dtype),
                "id": found,
                "calls": module.calls.read_value(),
            }

        specs = [
            tf.TensorSpec((None, 3), self.dtype, self.input_name),
            tf.TensorSpec((None,), tf.string, "text"),
        ]
        module.score = tf.function(score, input_signature=specs)
        tf.saved_model.save(module, str(directory), signatures=module.score)
        return directory


def parsed(directory: Path) -> Any:
    """The ``SavedModel`` message of a directory."""
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())


def changed(directory: Path, change: Callable[[Any], None]) -> Path:
    """Copy a SavedModel beside itself, with a change to its ``MetaGraphDef``."""
    copy = directory.with_name(f"{directory.name}-changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    model = parsed(copy)
    change(model.meta_graphs[0])
    (copy / "saved_model.pb").write_bytes(model.SerializeToString())
    return copy


@dataclass
class Renamer:
    """Gives every node and function another name, and shuffles all that has no order."""

    random: random.Random
    names: dict[str, str] = field(default_factory=dict)

    def __call__(self, graph: Any) -> None:
        for function in graph.graph_def.library.function:
            self.names[function.signature.name] = f"f{self.random.getrandbits(60)}"
        for function in graph.graph_def.library.function:
            function.signature.name = self.names[function.signature.name]
            self._rename_nodes(function)
        self.shuffle(graph.graph_def.library.function)
        objects = graph.object_graph_def
        for node in objects.nodes:
            if node.HasField("function"):
                renamed = [self.names[name] for name in node.function.concrete_functions]
                node.function.concrete_functions[:] = renamed
            elif node.HasField("bare_concrete_function"):
                bare = node.bare_concrete_function
                bare.concrete_function_name = self.names[bare.concrete_function_name]
            elif node.HasField("variable"):
                node.variable.name = f"v{self.random.getrandbits(60)}"
        for name in list(objects.concrete_functions):
            objects.concrete_functions[self.names[name]].CopyFrom(objects.concrete_functions[name])
            del objects.concrete_functions[name]
        graph.ClearField("meta_info_def")

    def shuffle(self, messages: Any) -> None:
        """Shuffle a repeated field of messages or texts."""
        values = list(messages)
        self.random.shuffle(values)
        copies = [type(v).FromString(v.SerializeToString()) if hasattr(v, "DESCRIPTOR") else v
                  for v in values]  # fmt: skip
        del messages[:]
        messages.extend(copies)

    def _rename_nodes(self, function: Any) -> None:
        names = {}
        for message in (*function.node_def, *function.signature.input_arg):
            names[message.name] = f"n{self.random.getrandbits(60)}"
            message.name = names[message.name]

        def new(text: str) -> str:
            name, colon, port = text.partition(":")
            return names[name] + colon + port

        for node in function.node_def:
            data = [new(text) for text in node.input if text[0] != "^"]
            controls = [f"^{names[text[1:]]}" for text in node.input if text[0] == "^"]
            self.random.shuffle(controls)
            node.input[:] = data + controls
            for value in node.attr.values():
                for called in (value.func, *value.list.func):
                    if called.name:
                        called.name = self.names[called.name]
        for key in list(function.ret):
            function.ret[key] = new(function.ret[key])
        for key in list(function.control_ret):
            function.control_ret[key] = names[function.control_ret[key]]
        self.shuffle(function.node_def)


def attribute_changes(value: Any) -> Iterator[Callable[[], None]]:
    """Yield a change of an ``AttrValue`` in place, for the kinds that can be changed safely."""
    kind = value.WhichOneof("value")
    if kind == "s":
        yield lambda: setattr(value, "s", value.s + b"/tmp/x")
    elif kind == "i":
        yield lambda: setattr(value, "i", value.i + 1)
    elif kind == "f":
        yield lambda: setattr(value, "f", float(np.nextafter(np.float32(value.f), np.inf)))
    elif kind == "b":
        yield lambda: setattr(value, "b", not value.b)
    elif kind == "type":
        yield lambda: setattr(value, "type", value.type + 1)
    elif kind == "shape":
        yield lambda: value.shape.dim.add(size=7)
    elif kind == "tensor":
        yield lambda: value.tensor.tensor_shape.dim.add(size=1)
    elif kind == "list":
        yield lambda: value.list.i.append(7)
