"""The hash of a SavedModel: equal for equal computations, another after any change."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.saved_models import SIGNATURE, Model, Renamer, changed, parsed
from tidemill.features.errors import BundleError, DamagedFile
from tidemill.serving.bundles.graph_hash import graph_hash

MODEL = Model()
ULP = float(np.nextafter(np.float32(3.0), np.float32(4.0)))


def hash_of(directory: Path) -> str:
    return graph_hash(directory, [SIGNATURE])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODEL.save(tmp_path_factory.mktemp("saved") / "model")


def test_a_model_that_is_built_again_has_the_same_hash(saved: Path, tmp_path: Path) -> None:
    """TensorFlow's counters have gone on, and the folders are others."""
    again = MODEL.save(tmp_path / "deeper" / "again")
    assert (again / "saved_model.pb").read_bytes() != (saved / "saved_model.pb").read_bytes()
    assert hash_of(again) == hash_of(saved)


def test_another_process_with_other_hashes_of_texts_gets_the_same_hash(
    saved: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, pathlib\n"
        "from tests.support.saved_models import Model, SIGNATURE\n"
        "from tidemill.serving.bundles.graph_hash import graph_hash\n"
        "print(graph_hash(Model().save(pathlib.Path(sys.argv[1])), [SIGNATURE]))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert found.stdout.split()[-1] == hash_of(saved)


@pytest.mark.parametrize("seed", range(5))
def test_names_and_the_order_of_nodes_do_not_count(saved: Path, seed: int) -> None:
    renamed = changed(saved, Renamer(random.Random(seed)))
    assert hash_of(renamed) == hash_of(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": (0.25, -1.5, ULP)},
        {"words": ("north", "süd")},
        {"words": ("south", "north")},
        {"default_id": 7},
        {"constant": 2.0000002},
        {"operation": "sin"},
        {"keep_dims": True},
        {"steps": 4},
        {"input_name": "y"},
        {"output_name": "result"},
        {"dtype": "float64"},
        {"seed": 6},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_of_what_is_computed_changes_the_hash(
    saved: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert hash_of(replace(MODEL, **change).save(tmp_path / "model")) != hash_of(saved)


def test_a_changed_vocabulary_file_changes_the_hash(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    assert hash_of(copy) == hash_of(saved)
    (vocabulary,) = (copy / "assets").iterdir()
    vocabulary.write_text(vocabulary.read_text().replace("south", "South"))
    assert hash_of(copy) != hash_of(saved)


def test_swapped_captures_change_the_hash(saved: Path) -> None:
    """A variable in the place of another of equal dtype and shape, and other values."""

    def swap(graph: Any) -> None:
        for function in graph.object_graph_def.concrete_functions.values():
            function.bound_inputs[:] = list(function.bound_inputs)[::-1]

    assert hash_of(changed(saved, swap)) != hash_of(saved)


def test_a_captured_object_of_an_unknown_kind_is_refused(saved: Path) -> None:
    def capture_the_root(graph: Any) -> None:
        for function in graph.object_graph_def.concrete_functions.values():
            if function.bound_inputs:
                function.bound_inputs[0] = 0

    with pytest.raises(BundleError, match="has captured an object of the kind user_object"):
        hash_of(changed(saved, capture_the_root))


def test_a_captured_variable_without_a_saved_value_is_refused(saved: Path) -> None:
    def rename(graph: Any) -> None:
        for child in graph.object_graph_def.nodes[0].children:
            if child.local_name == "weights":
                child.local_name = "elsewhere"

    with pytest.raises(BundleError, match="has no saved value"):
        hash_of(changed(saved, rename))


def _lose_the_library(graph: Any) -> None:
    del graph.graph_def.library.function[:]


def _lose_the_functions(graph: Any) -> None:
    graph.object_graph_def.concrete_functions.clear()


def _lose_the_signature(graph: Any) -> None:
    graph.signature_def.clear()


def _lose_the_constants(graph: Any) -> None:
    del graph.graph_def.node[:]


def _lose_the_assets(graph: Any) -> None:
    del graph.asset_file_def[:]


def _lose_the_initializer(graph: Any) -> None:
    for node in graph.object_graph_def.nodes:
        if node.HasField("resource"):
            del node.children[:]


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        (_lose_the_library, "which its function library lacks"),
        (_lose_the_functions, "lacks the function '__inference_signature_wrapper"),
        (_lose_the_signature, "lacks the signature 'serving_default'"),
        (_lose_the_constants, "lacks the constant 'Const"),
        (_lose_the_assets, "lacks the asset 0"),
        (_lose_the_initializer, "has no '_create_resource'"),
    ],
)
def test_what_is_missing_is_named(saved: Path, lose: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        hash_of(changed(saved, lose))


def test_a_function_that_is_not_there_is_named(saved: Path) -> None:
    with pytest.raises(BundleError, match="has no 'signatures/train': found serving_default"):
        graph_hash(saved, ["signatures/train"])


def test_damaged_files_are_named(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (copy / "variables" / "variables.index").write_bytes(b"no checkpoint")
    with pytest.raises(DamagedFile, match=r"variables\.index is damaged"):
        hash_of(copy)
    (copy / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(DamagedFile, match=r"saved_model\.pb is damaged"):
        hash_of(copy)
    (copy / "saved_model.pb").write_bytes(b"")
    with pytest.raises(BundleError, match="is not a SavedModel of TensorFlow 2"):
        hash_of(copy)


def test_the_values_of_a_mutable_table_count(tmp_path: Path) -> None:
    import tensorflow as tf

    def save(value: int, name: str) -> Path:
        module = tf.Module()
        module.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        module.table.insert(["a"], [value])
        spec = tf.TensorSpec((None,), tf.string, "text")
        module.find = tf.function(lambda text: {"id": module.table.lookup(text)}, [spec])
        tf.saved_model.save(module, str(tmp_path / name), signatures=module.find)
        return tmp_path / name

    one = hash_of(save(1, "one"))
    assert hash_of(save(1, "again")) == one
    assert hash_of(save(2, "two")) != one


def test_two_tables_are_not_one(tmp_path: Path) -> None:
    """Names of shared resources do not count, but whether two are equal does."""

    def save(name: str, tables: int) -> Path:
        import tensorflow as tf

        module = tf.Module()
        module.tables = [
            tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2], tf.string, tf.int64), -1
            )
            for _ in range(tables)
        ]
        spec = tf.TensorSpec((None,), tf.string, "text")

        def find(text: Any) -> dict[str, Any]:
            return {"a": module.tables[0].lookup(text), "b": module.tables[-1].lookup(text)}

        module.find = tf.function(find, [spec])
        tf.saved_model.save(module, str(tmp_path / name), signatures=module.find)
        return tmp_path / name

    one, two, again = save("one", 1), save("two", 2), save("again", 2)
    assert hash_of(two) == hash_of(again) != hash_of(one)
    names = {
        node.attr["shared_name"].s: None
        for function in parsed(two).meta_graphs[0].graph_def.library.function
        for node in function.node_def
        if node.op == "HashTableV2"
    }
    first = next(iter(names))

    def share(graph: Any) -> None:
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "HashTableV2":
                    node.attr["shared_name"].s = first

    assert hash_of(changed(two, share)) != hash_of(two)
