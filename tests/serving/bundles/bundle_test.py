from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import trained_bundle as given
from tidemill.features.errors import (
    BundleError,
    BundleMismatch,
    DamagedBundle,
    DefinitionError,
)
from tidemill.serving.bundles.bundle import IDENTITY, Bundle, bundle_version, manifest_digest
from tidemill.serving.bundles.saved_model import TransformGraph, save_model
from tidemill.serving.bundles.writing import write_bundle


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    shutil.copytree(given.bundle().directory, path)
    return path


def test_a_bundle_says_what_it_is() -> None:
    bundle = Bundle.load(given.bundle().directory, given.PROJECT)
    manifest = bundle.manifest
    assert bundle.directory.name == bundle.version
    assert bundle.created_at == "2026-11-20T12:00:00Z"
    assert manifest["project"] == "parcels"
    assert bundle.feature_spec_hash == given.PROJECT.hash
    assert bundle.transform_hash == bundle.transform_graph.hash
    assert manifest["inputs"][0] == {"name": "size", "kind": "text", "dtype": "string"}
    assert [i.name for i in bundle.inputs] == [i["name"] for i in manifest["inputs"]]
    assert manifest["view_hashes"] == {"depot": given.DEPOT.hash}
    assert bundle.lineage == given.LINEAGE
    assert set(manifest["software"]) == {"tensorflow", "tensorflow-transform", "keras"}
    assert manifest["training"]["rows"]["rows"] == given.ROWS
    assert json.loads((bundle.directory / "spec.json").read_text()) == given.PROJECT.spec()


def test_nothing_half_written_is_left_beside_a_bundle() -> None:
    bundle = given.bundle()
    assert [p.name for p in bundle.directory.parent.iterdir()] == [bundle.version]


def _refused(copy: Path, message: str) -> None:
    with pytest.raises(DamagedBundle, match=message):
        Bundle.load(copy, given.PROJECT)


def test_a_changed_file_is_refused_by_name(copy: Path) -> None:
    variables = copy / "model" / "variables" / "variables.data-00000-of-00001"
    content = bytearray(variables.read_bytes())
    content[-1] ^= 1
    variables.write_bytes(content)
    _refused(copy, "has changed: 'model/variables/variables.data")


def test_a_lost_and_an_added_file_are_refused_by_name(copy: Path) -> None:
    (copy / "evaluation.json").rename(copy / "other.json")
    _refused(copy, "lacks 'evaluation.json'")
    (copy / "other.json").rename(copy / "evaluation.json")
    (copy / "transform" / "extra").write_text("")
    _refused(copy, "has a file too many: 'transform/extra'")


def test_a_changed_manifest_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["feature_spec_hash"] = "0" * 16
    (copy / "manifest.json").write_text(json.dumps(manifest))
    _refused(copy, "was changed after it was written")


def test_a_changed_lineage_is_refused_although_it_is_no_part_of_the_version(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["lineage"] = {"generation": "another"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert bundle_version(manifest) == manifest["version"]
    _refused(copy, "was changed after it was written")
    manifest["digest"] = manifest_digest(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert Bundle.load(copy, given.PROJECT).lineage == {"generation": "another"}


def test_the_version_depends_on_each_part_of_the_identity_and_on_nothing_else() -> None:
    manifest = given.bundle().manifest
    for name in manifest:
        changed = bundle_version({**manifest, name: "something else"})
        assert (changed != manifest["version"]) == (name in IDENTITY), name
    assert set(manifest) - set(IDENTITY) == {
        "created_at", "digest", "files", "lineage", "version", "view_hashes",
    }  # fmt: skip


def test_another_format_and_no_bundle_at_all_are_refused(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(BundleError, match=r"has format 1; .* reads format 2: run `tidemill train`"):
        Bundle.load(copy)
    (copy / "manifest.json").write_text("{")
    _refused(copy, "is not JSON")
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle.load(tmp_path / "nowhere")


def test_a_changed_window_is_refused_by_the_names_of_view_and_feature() -> None:
    directory = given.bundle().directory
    with pytest.raises(
        BundleMismatch,
        match="view 'depot', feature 'minutes_1d': window 1d -> 2d",
    ):
        Bundle.load(directory, given.with_window("2d"))


def test_definitions_of_the_same_meaning_fit() -> None:
    bundle = Bundle.load(given.bundle().directory, given.with_window("24h"))
    assert bundle.version == given.bundle().version


def test_a_bundle_is_written_below_its_version(tmp_path: Path) -> None:
    first = given.bundle()
    model = given.build_model(first.transform_graph.model_spec(0.01, 1))
    written = write_bundle(
        tmp_path,
        project=given.PROJECT,
        graph=first.transform_graph,
        model=model,
        created_at="later",
        training={},
        evaluation={},
        statistics={},
    )
    assert written.directory == tmp_path / written.version
    assert written.transform_hash == first.transform_hash
    assert [p.name for p in tmp_path.iterdir()] == [written.version]


def test_a_version_that_exists_stays_if_it_is_whole_and_is_replaced_if_it_is_damaged(
    tmp_path: Path,
) -> None:
    graph = given.bundle().transform_graph
    model = given.build_model(graph.model_spec(0.01, 1))

    def write(day: str) -> Bundle:
        return write_bundle(
            tmp_path,
            project=given.PROJECT,
            graph=graph,
            model=model,
            created_at=day,
            training={},
            evaluation={},
            statistics={},
            lineage={"day": day},
        )

    first = write("first")
    assert write("second").manifest == first.manifest
    (first.directory / "evaluation.json").write_text("{ }")
    with pytest.raises(DamagedBundle, match=r"has changed: 'evaluation\.json'"):
        Bundle.load(first.directory)
    third = write("third")
    assert third.directory == first.directory
    assert (third.created_at, third.lineage) == ("third", {"day": "third"})
    assert [path.name for path in tmp_path.iterdir()] == [first.version]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    import keras

    graph = given.bundle().transform_graph
    inputs = {n: keras.Input((k,), name=n) for n, k in graph.numeric.items()}
    two = keras.Model(inputs, keras.layers.Dense(2)(inputs["numbers"]))
    with pytest.raises(DefinitionError, match=r"must end in one sigmoid.*found \(None, 2\)"):
        write_bundle(
            tmp_path,
            project=given.PROJECT,
            graph=graph,
            model=two,
            created_at="",
            training={},
            evaluation={},
            statistics={},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_a_transform_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no transform graph"):
        TransformGraph.read(tmp_path)


def test_the_saved_model_carries_no_optimizer_state(tmp_path: Path) -> None:
    import tensorflow as tf

    graph = given.bundle().transform_graph
    model = given.build_model(graph.model_spec(0.01, 1))
    model.optimizer.build(model.trainable_variables)
    save_model(graph, model, tmp_path / "model")
    variables = tf.train.list_variables(str(tmp_path / "model" / "variables" / "variables"))
    saved = sum(int(np.prod(shape)) for name, shape in variables if "weights" in name)
    assert saved == model.count_params()
    assert not [name for name, _ in variables if "optimizer" in name]


def _stderr_of_loading(environment: dict[str, str]) -> bytes:
    plain = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    code = "from tidemill.serving.models.tensorflow_start import load_tensorflow; load_tensorflow()"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        env=plain | environment,
        stderr=subprocess.PIPE,
        check=True,
    ).stderr


def test_tensorflow_starts_without_a_word() -> None:
    assert _stderr_of_loading({}) == b""


def test_errors_at_the_start_are_still_printed(tmp_path: Path) -> None:
    # A stand-in that writes messages of TensorFlow's C++ code, and an error.
    (tmp_path / "tensorflow.py").write_text(
        "import os, sys\n"
        "os.write(2, b'I0000 00:00:1.2 3 port.cc:153] oneDNN is on\\nE0000 it is broken\\n')\n"
        "print('a progress bar', file=sys.stderr)\n"
        "class config:\n"
        "    list_physical_devices = staticmethod(lambda: [])\n"
    )
    shown = _stderr_of_loading({"PYTHONPATH": str(tmp_path)})
    assert shown == b"a progress bar\nE0000 it is broken\n"
