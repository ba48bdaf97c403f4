"""Digests of functions: every part of a node counts, and what has no canonical form is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.saved_models import Model, attribute_changes, parsed
from tidemill.features.errors import BundleError
from tidemill.serving.bundles.function_digests import FunctionDigests


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = Model().save(tmp_path_factory.mktemp("saved") / "model")
    return parsed(directory).meta_graphs[0].graph_def.library


def _root(library: Any) -> str:
    (name,) = [
        f.signature.name for f in library.function if "signature_wrapper" in f.signature.name
    ]
    return str(name)


def _reached(library: Any) -> list[Any]:
    """The functions that the root calls, and itself."""
    functions = {f.signature.name: f for f in library.function}
    found = {_root(library): None}
    for name in (waiting := list(found)):
        for node in functions[name].node_def:
            for value in node.attr.values():
                for called in (value.func, *value.list.func):
                    if called.name and called.name not in found:
                        found[called.name] = None
                        waiting.append(called.name)
    return [functions[name] for name in found]


def _copy(library: Any) -> Any:
    return type(library).FromString(library.SerializeToString())


def _digest(library: Any) -> bytes:
    return FunctionDigests(library).of(_root(library))


def _nodes(library: Any) -> Iterator[tuple[Any, Any]]:
    for function in _reached(library):
        for node in function.node_def:
            yield function, node


def _all_changed(library: Any, change: Callable[[Any, Any], Iterator[str]]) -> list[str]:
    """Apply each change alone; return those that the digest does not show."""
    before = _digest(library)
    total = sum(1 for _ in _nodes(library))
    unseen, tried = [], 0
    for place in range(total):
        copy = _copy(library)
        function, node = list(_nodes(copy))[place]
        original = type(node).FromString(node.SerializeToString())
        for what in change(function, node):
            tried += 1
            if _digest(copy) == before:
                unseen.append(f"{node.op} {node.name}: {what}")
            node.CopyFrom(original)
    assert tried > 20
    return unseen


def test_each_attribute_of_each_node_counts(library: Any) -> None:
    def attributes(_: Any, node: Any) -> Iterator[str]:
        for name in sorted(node.attr):
            for apply in attribute_changes(node.attr[name]):
                apply()
                yield name

    unseen = _all_changed(library, attributes)
    # Alone, a name of a resource is arbitrary: it counts as soon as there are two.
    assert [u for u in unseen if not u.endswith(("shared_name", "container"))] == []


def test_an_attribute_that_is_new_counts(library: Any) -> None:
    def add(_: Any, node: Any) -> Iterator[str]:
        node.attr["path_of_a_future_version"].s = b"/tmp/somewhere"
        yield "new"

    assert _all_changed(library, add) == []


def test_the_op_and_the_device_of_each_node_count(library: Any) -> None:
    def change(_: Any, node: Any) -> Iterator[str]:
        node.op += "V2"
        yield "op"
        node.device = "/device:GPU:0"
        yield "device"

    assert _all_changed(library, change) == []


def test_each_input_of_each_node_counts(library: Any) -> None:
    def change(_: Any, node: Any) -> Iterator[str]:
        for index, text in enumerate(node.input):
            del node.input[index]
            yield f"without {text}"
        if len(node.input) > 1 and node.input[0] != node.input[1] and node.input[1][0] != "^":
            node.input[0], node.input[1] = node.input[1], node.input[0]
            yield "swapped"

    assert _all_changed(library, change) == []


def test_what_the_user_calls_an_argument_does_not_count(library: Any) -> None:
    copy = _copy(library)
    for function in copy.function:
        for attributes in function.arg_attr.values():
            if "_user_specified_name" in attributes.attr:
                attributes.attr["_user_specified_name"].s = b"4711"
    assert _digest(copy) == _digest(library)


def test_a_node_that_no_output_needs_counts(library: Any) -> None:
    copy = _copy(library)
    _reached(copy)[-1].node_def.add(name="alone", op="NoOp")
    assert _digest(copy) != _digest(library)


def test_a_function_that_calls_itself_is_refused(library: Any) -> None:
    copy = _copy(library)
    function = _reached(copy)[-1]
    node = function.node_def.add(name="again", op="PartitionedCall")
    node.attr["f"].func.name = function.signature.name
    with pytest.raises(BundleError, match="calls itself, so it has no canonical hash"):
        _digest(copy)


def test_a_function_that_is_missing_is_refused(library: Any) -> None:
    copy = _copy(library)
    function = _reached(copy)[-1]
    function.signature.name = "renamed"
    with pytest.raises(BundleError, match="which its function library lacks"):
        _digest(copy)


def test_a_cycle_and_an_input_from_nowhere_are_refused(library: Any) -> None:
    copy = _copy(library)
    function = _reached(copy)[-1]
    function.node_def.add(name="one", op="NoOp", input=["^two"])
    function.node_def.add(name="two", op="NoOp", input=["^one"])
    with pytest.raises(BundleError, match=r"form a cycle at '(one|two)'"):
        _digest(copy)
    copy = _copy(library)
    _reached(copy)[-1].node_def.add(name="lost", op="Identity", input=["nowhere:output:0"])
    with pytest.raises(BundleError, match="has no node 'nowhere'"):
        _digest(copy)


def test_a_saved_model_is_the_one_that_the_tests_think(tmp_path: Path) -> None:
    """The model of these tests has nested functions, branches, loops and control inputs."""
    library = parsed(Model().save(tmp_path / "model")).meta_graphs[0].graph_def.library
    ops = {node.op for _, node in _nodes(library)}
    assert {"StatelessWhile", "LookupTableFindV2", "AssignAddVariableOp", "Const"} <= ops
    assert any("If" in op for op in ops)
    assert any(text.startswith("^") for _, node in _nodes(library) for text in node.input)
    assert len(_reached(library)) > 5
