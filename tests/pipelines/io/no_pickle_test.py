"""No installed module reads a pickle, neither from disk nor from an engine's state.

Ruff forbids the modules that load pickles (`pyproject.toml`). This test also finds arguments and
Beam coders that load them, and ignores ruff's exceptions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.markdown import ROOT

ROOMS = ("features", "serving", "pipelines", "examples", "tidemill/testing")
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pickler"}
NAMES = {
    "CloudpickleCoder",
    "DillCoder",
    "FastPrimitivesCoder",
    "PickleCoder",
    "enable_unsafe_deserialization",
    "read_pickle",
}
SWITCHES = {"allow_pickle": True, "safe_mode": False}


def reads_pickles(code: str) -> Iterator[str]:
    """Yield the names in a module that read pickles, or make Beam read them."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if MODULES & {*name.name.split(".")})
        elif isinstance(node, ast.ImportFrom):
            path = [*(node.module or "").split("."), *(name.name for name in node.names)]
            yield from (part for part in path if part in MODULES | NAMES)
        elif isinstance(node, (ast.Attribute, ast.Name)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in NAMES:
                yield name
        elif isinstance(node, ast.Call):
            for given in node.keywords:
                # Only a literal that turns the switch off counts as off.
                off = isinstance(given.value, ast.Constant) and (
                    given.value.value is not SWITCHES.get(given.arg or "")
                )
                if given.arg in SWITCHES and not off:
                    yield given.arg
            function = ast.unparse(node.func)
            if function.endswith("StateSpec"):
                coders = [*node.args[1:], *(k.value for k in node.keywords if k.arg != "name")]
                if [ast.unparse(coder) for coder in coders] != ["BytesCoder()"]:
                    yield function


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_no_module_reads_a_pickle() -> None:
    found = {path: list(reads_pickles(path.read_text())) for path in modules()}
    assert len(found) > 150
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import cloudpickle as plain",
        "from joblib import load",
        "from apache_beam.internal import pickler",
        "from apache_beam.internal.pickler import loads",
        "import pandas as pd\npd.read_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "keras.models.load_model(path, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
        "beam.coders.registry.register_coder(Row, coders.PickleCoder)",
        "from apache_beam.coders import FastPrimitivesCoder",
        "ROWS = BagStateSpec('rows', VarIntCoder())",
        "ROWS = BagStateSpec(name='rows', coder=None)",
        "ROWS = ReadModifyWriteStateSpec('rows')",
    ],
)
def test_a_new_one_would_be_found(code: str) -> None:
    assert list(reads_pickles(code))


def test_code_that_reads_no_pickle_passes() -> None:
    code = "np.load(path, allow_pickle=False)\nROWS = BagStateSpec('rows', BytesCoder())"
    assert list(reads_pickles(code)) == []
